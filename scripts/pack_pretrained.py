"""Put a finished run into the package, its weights as float16: python scripts/pack_pretrained.py RUN NAME

Config, report and metrics go with it as they are; a run of `capsnet reproduce spatial` has no report, and gets one. The
packed model is tested again, because rounding changes weights.
"""

import json
import shutil
import sys
from pathlib import Path

from capsnet import evaluate, load, open_dataset, pretrained, runs

run, name = Path(sys.argv[1]), sys.argv[2]
packed = pretrained.folder(name)
runs.make_folder(packed)
data = runs.read_config(run)["command"].get("data", "faces")
if not (run / runs.REPORT).exists():
    runs.write_json(run / runs.REPORT, {"test_error": round(evaluate(load(run), open_dataset(data, "test")).error, 4)})
for file in (runs.CONFIG, runs.REPORT, runs.METRICS):
    shutil.copyfile(run / file, packed / file)
state = {key: tensor.half() for key, tensor in load(run).state_dict().items()}
runs.write_atomically(packed / runs.WEIGHTS, runs.as_weights(state, runs.read_config(packed)))
outcome = evaluate(load(packed), open_dataset(data, "test"))
before = json.loads((run / runs.REPORT).read_text())["test_error"]
print(f"{packed}: {(packed / runs.WEIGHTS).stat().st_size:,} bytes, test error {outcome.error:.2f} % (was {before} %)")
