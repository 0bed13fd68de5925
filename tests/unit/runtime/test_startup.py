import gc

import pytest

from tltasks.runtime.startup import without_collection


def test_the_collector_waits_and_passes_over_what_was_loaded() -> None:
    frozen = gc.get_freeze_count()
    try:
        with without_collection():
            assert not gc.isenabled()
            loaded = [[] for _ in range(1000)]  # type: ignore[var-annotated]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(loaded)
    finally:
        gc.unfreeze()


def test_it_is_put_on_again_after_an_error() -> None:
    with pytest.raises(ValueError, match="no model"), without_collection():
        raise ValueError("no model")
    assert gc.isenabled()
    gc.unfreeze()
