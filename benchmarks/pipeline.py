"""Work of a device in a pipeline beside that of data parallelism on as many devices, from compiled gradients.

    python benchmarks/pipeline.py [--model 350M] [--stages 4] [--microbatches 8] [--length 512] [--rows 4]

Nothing is run: the products of the compiled program are counted, those in loops as often as they run. A
stage works in every tick, so that its waiting (the bubble) is work here; theory gives its share.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from side_by_side import save

WANTED = 1.05  # times what the bubble makes of it
SHAPE = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = \w+\[([\d,]*)\]")
DOT = re.compile(r" dot\(%([\w.\-]+), .*lhs_contracting_dims=\{([\d,]*)\}")


def products(hlo: str) -> int:
    """FLOPs of all products of matrices of a compiled program, on one device."""
    from neojax.plan.hlo import computations, trips

    bodies = computations(hlo)
    times, total = trips(bodies), 0
    for name, lines in bodies.items():
        sizes = {m[1]: [int(n) for n in m[2].split(",") if n] for m in map(SHAPE.match, lines) if m}
        for line in lines:
            if (made := SHAPE.match(line)) and (dot := DOT.search(line)):
                summed = [sizes[dot[1]][int(i)] for i in dot[2].split(",") if i]
                total += times[name] * 2 * math.prod(sizes[made[1]]) * math.prod(summed)
    return total


def compiled(options: Mapping[str, Any], layout: str, shape: str, remat: str, rounds: int) -> tuple[int, Any]:
    """FLOPs of a device for the gradient of a step, and the schedule of its pipeline, if it is one."""
    import jax

    from neojax.config import MeshConfig, TrainConfig
    from neojax.data.batch import Batch
    from neojax.layout.mesh import make_layout
    from neojax.models import Transformer
    from neojax.models.compute import Compute
    from neojax.training.optimizer import make_optimizer
    from neojax.training.state import abstract_state
    from neojax.training.step import make_train_step

    own = make_layout(MeshConfig(shape, layout, cpu_devices=options["stages"]))
    config = replace(shapes.ours(options["model"], options["length"]))
    model = Transformer(config, own, Compute(remat=remat, rounds=rounds))
    count, rows = options["microbatches"], options["rows"]
    train = TrainConfig(batch_size=count * rows, microbatch=rows)
    optimizer = make_optimizer(train, model.dims(), config.n_vocab)
    with jax.set_mesh(own.mesh):  # type: ignore[arg-type]
        whole = own.sharding(("microbatches", "batch", "sequence"))
        tokens = jax.ShapeDtypeStruct((count, rows, options["length"]), "int32", sharding=whole)
        step = make_train_step(model, optimizer, train)
        lowered = step.lower(abstract_state(model, optimizer), Batch(tokens, tokens), 0)
        return products(lowered.compile().as_text()), model.schedule(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="350M")
    for name, value in {"stages": 4, "microbatches": 8, "length": 512, "rows": 4, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    stages = options["stages"]
    results: dict[str, Any] = {}
    for remat in ("names", "full"):
        plain, _ = compiled(options, "batch:data", f"data:{stages}", remat, 1)
        print(f"{options['model']}, remat {remat}, {stages} devices: {plain:.4g} FLOPs each, data parallel")
        results[remat] = {"data": plain}
        for rounds in (1, options["rounds"]):
            flops, schedule = compiled(options, "layers:stage, vocab:stage", f"stage:{stages}", remat, rounds)
            theory = 1 / (1 - schedule.bubble)
            print(
                f"  pipeline, {rounds} round(s): {flops / plain:.3f} of that; with the bubble theory gives "
                f"{theory:.3f}, wanted at most {theory + WANTED - 1:.3f}"
            )
            results[remat][f"rounds {rounds}"] = {"flops": flops, "ratio": flops / plain, "theory": theory}
    save("pipeline", {**options, **results})


if __name__ == "__main__":
    main()
