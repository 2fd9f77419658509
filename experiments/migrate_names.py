"""Rename variants, recipe fields and epoch keys in results/ to today's names, once: python -m experiments.migrate_names"""

import json

from experiments.legacy import FIELDS, VARIANTS, rename
from training.files import LEDGER, SPEED, atomic_path

lines = [json.dumps(rename(json.loads(line)), separators=(",", ":")) for line in LEDGER.read_text().splitlines()]
with atomic_path(LEDGER) as temporary:
    temporary.write_text("\n".join(lines) + "\n")

speed = json.loads(SPEED.read_text())
for part in ("to 99.0%", "to 99.4%"):
    speed[part]["recipe"] = {FIELDS.get(key, key): value for key, value in speed[part]["recipe"].items()}
    speed[part]["variant"] = VARIANTS.get(speed[part]["variant"], speed[part]["variant"])
seconds = speed["epoch"]["seconds"]
speed["epoch"]["seconds"] = {key.replace(" 1 threads", " 1 thread"): value for key, value in seconds.items()}
with atomic_path(SPEED) as temporary:
    temporary.write_text(json.dumps(speed, indent=1) + "\n")
