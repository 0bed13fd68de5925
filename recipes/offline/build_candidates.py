"""Make `weights/candidates`: EfficientNet-Lite0 with more and more of its upper blocks forgotten, to be ranked.

    python recipes/offline/build_candidates.py

`all` is the checkpoint as fetch_efficientnet_lite0.py leaves it; in `lower_5` and `lower_3` only so many of the seven
blocks keep their weights, and `none` is random throughout.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from wheels import WEIGHTS, make_folder

BLOCKS_KEPT = {"all": 7, "lower_5": 5, "lower_3": 3, "none": 0}
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Make checkpoints that know less and less.")
    parser.add_argument("source", type=Path, nargs="?", default=WEIGHTS / "efficientnet-lite0", metavar="SOURCE")
    parser.add_argument("out", type=Path, nargs="?", default=WEIGHTS / "candidates", metavar="OUT")
    options = parser.parse_args()
    source: Path = options.source
    if not (source / "config.json").is_file():
        sys.exit(f"error: {source}: no checkpoint; run fetch_efficientnet_lite0.py first.")
    for name, kept in BLOCKS_KEPT.items():
        make_folder((options.out / name).absolute(), partial(forget, source, kept))


def forget(source: Path, kept: int, scratch: Path, folder: Path) -> None:
    """Save the checkpoint with random weights in all but its `kept` lowest blocks."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here comes from the Hub
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(source)
    torch.manual_seed(SEED)
    fresh = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(source)).state_dict()
    own = model.state_dict()
    lower = tuple(f"timm_model.blocks.{i}." for i in range(kept))
    if kept:
        lower += ("timm_model.conv_stem.", "timm_model.bn1.")
    keeps_all = kept == max(BLOCKS_KEPT.values())
    model.load_state_dict({k: own[k] if keeps_all or k.startswith(lower) else fresh[k] for k in own})
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
