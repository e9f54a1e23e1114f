"""The trace of a run holds the steps that were asked for, however often the run was stopped."""

import jax

from neojax.training.loop import train
from neojax.training.metrics import read_metrics

SMALL = ("model.n_layer=1", "model.attention_types=[global]", "data.validation=", "train.microbatch=0")


def traced(folder):
    """The numbers of the steps in every trace under `folder`, oldest first, and the names of its host
    events."""
    steps, names = [], set()
    for file in sorted(folder.rglob("*.xplane.pb")):
        found, data = [], jax.profiler.ProfileData.from_file(str(file))  # which owns all that is read of it
        for plane in data.planes:
            for event in (event for line in plane.lines for event in line.events):
                names.add(event.name)
                if event.name == "train":
                    found.append(dict(event.stats)["step_num"])
        steps.append(sorted(found))
    return steps, names


def test_the_steps_asked_for_are_traced_on_either_side_of_a_stop(settings, tmp_path):
    """Stopped after 3 of [2, 4]: one trace of 2 and 3, another of 4; a run that is past them traces
    nothing."""
    asked = (*SMALL, "train.profile_steps=[2, 4]", "train.log_every=4")
    for steps in (3, 5, 6):
        train(settings(tmp_path, *asked, f"train.steps={steps}"))
    steps, names = traced(tmp_path / "profile")
    assert steps == [[2, 3], [4]]
    assert "input" in names
    assert len(list((tmp_path / "profile").rglob("*.trace.json.gz"))) == 2
    assert all(row["input_seconds"] > 0 for row in read_metrics(tmp_path))
