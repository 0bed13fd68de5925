"""The Hub: pushes that keep what others wrote, pulls, models with their runs and bases, data sets."""

from tltasks.hub.client import PushReceipt, check_push, find_model, pull, push
from tltasks.hub.upload_plan import UploadPlan

__all__ = ["PushReceipt", "UploadPlan", "check_push", "find_model", "pull", "push"]
