"""Both sides of each contest of augmentations change images alike."""

import bench_augment
import pytest


def test_loops_do_the_same():
    pytest.importorskip("scipy")
    bench_augment.check()
