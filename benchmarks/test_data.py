"""Both sides of each contest of augmentations change images alike."""

import bench_data
import pytest


def test_loops_do_the_same():
    pytest.importorskip("scipy")
    bench_data.check()
