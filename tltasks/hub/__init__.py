"""The Hub: publishing, fetching, and the models that come from it."""
