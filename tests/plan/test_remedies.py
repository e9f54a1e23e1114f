"""What helps where a step does not fit: what is tried, and in which order it is told."""

from neojax.config import from_dict
from neojax.errors import NeojaxError
from neojax.layout.mesh import abstract_layout
from neojax.plan.remedies import Remedy, Trial, more_chips, ordered, remedies

CONFIG = from_dict(
    {
        "model": {"n_layer": 2, "n_embd": 64, "n_ctx": 64, "n_vocab": 128, "attention": {"heads": 2}},
        "mesh": {"shape": "data:4", "layout": "batch:data"},
        "train": {"batch_size": 256, "remat": "none"},
    }
)
LAYOUT = abstract_layout(CONFIG.mesh)
ROOM = 100


def tried(config):
    """A step that takes a byte a row and a moment more for each microbatch; recomputing takes more."""
    train = config.train
    rows = train.microbatch or train.batch_size
    again = {"none": 1.0, "names": 1.2, "full": 1.33}[train.remat]
    needed = round(rows / again)
    return Trial(needed, needed <= ROOM, again + 0.01 * train.batch_size / rows)


def test_what_makes_a_step_fit_at_least_time_is_first():
    found = remedies(CONFIG, LAYOUT, tried(CONFIG), tried, tried)
    fitting = [one for one in found if one.fits]
    assert fitting and found[: len(fitting)] == fitting
    assert [one.seconds for one in fitting] == sorted(one.seconds for one in fitting)
    assert [one.needed for one in found[len(fitting) :]] == sorted(
        one.needed for one in found[len(fitting) :]
    )
    assert found[0].change == "train.microbatch=64"  # the largest of 4, 8 ... 128 that fits


def test_the_microbatches_that_are_tried_are_the_largest_that_fits_and_the_ends():
    sizes = {
        one.change for one in remedies(CONFIG, LAYOUT, tried(CONFIG), tried, tried) if "micro" in one.change
    }
    assert sizes == {f"train.microbatch={n}" for n in (128, 64, 4)}


def test_where_nothing_fits_alone_all_are_tried_together():
    def large(config):
        one = tried(config)
        return Trial(one.needed + 97, one.needed + 97 <= ROOM, one.seconds)

    found = remedies(CONFIG, LAYOUT, large(CONFIG), large, large)
    assert found[0].fits and "train.remat=full" in found[0].change and "microbatch=4" in found[0].change


def test_what_is_refused_is_left_out():
    def refusing(config):
        if config.train.microbatch:
            raise NeojaxError("no microbatches")
        return tried(config)

    found = remedies(CONFIG, LAYOUT, tried(CONFIG), refusing, refusing)
    assert found and not any("microbatch" in one.change for one in found)


def test_twice_the_chips_help_where_the_mesh_takes_what_there_is():
    half = lambda config: Trial(128, False, 0.5)  # noqa: E731
    assert more_chips(CONFIG, "h100:16", tried(CONFIG), half) is None
    free = from_dict(
        {
            "model": {"n_layer": 2},
            "mesh": {"shape": "data:-1", "layout": "batch:data"},
            "train": {"batch_size": 256},
        }
    )
    assert more_chips(free, "h100:16", Trial(256, False), half) == Remedy(
        "--topology h100:16", 128, False, 0.5
    )


def test_without_estimates_the_least_memory_is_first():
    found = [Remedy("a", 3, True), Remedy("b", 2, True), Remedy("c", 5, False)]
    assert [one.change for one in ordered(found)] == ["b", "a", "c"]
