"""Put a trained puppets model in the box: mafx/bundled gets its parameters, config, training log and scores.

python sample.py --workdir RUNS/temporal --split test --clips 64 --frames 16 --steps 1
python benchmarks/bundle.py --workdirs RUNS/appearance RUNS/temporal
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mafx.bundled import FOLDER, save_bundled
from mafx.evaluation.protocol import read_metrics
from mafx.training.loop import load_workdir, read_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdirs", type=Path, nargs="+", required=True, help="of all its stages; the last one's model is taken"
    )
    workdirs = parser.parse_args().workdirs
    config = read_config(workdirs[-1])
    config.init_from = Path(config.init_from).name  # wherever that was
    save_bundled(load_workdir(workdirs[-1]), config)
    logs = (line for workdir in workdirs for line in (workdir / "metrics.jsonl").read_text().splitlines())
    (FOLDER / "training.jsonl").write_text("".join(f"{_rounded(json.loads(line))}\n" for line in logs))
    found = read_metrics(workdirs[-1])
    settings = found["settings"] | {"split": f"the first {len(found['clips'])} clips of the test split"}
    (FOLDER / "scores.json").write_text(json.dumps({"settings": settings, "mean": found["mean"]}, indent=1) + "\n")
    print(f"{FOLDER / 'puppets.npz'}: {(FOLDER / 'puppets.npz').stat().st_size / 1e6:.2f} MB")


def _rounded(line: dict[str, float]) -> str:
    return json.dumps({name: float(f"{x:.4g}") if isinstance(x, float) else x for name, x in line.items()})


if __name__ == "__main__":
    main()
