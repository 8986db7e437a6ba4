"""A worker whose pipeline does what the training file says: no model, no torch."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

from potstill import errors
from potstill.jobs.worker import main


def distill(config, run, *, workspace, secrets, on_event):
    """Obeys the first line of the training file: {"seconds": 0, "error": "", ...}."""
    orders = json.loads(config.train_data[0].read_text(encoding="utf-8").splitlines()[0])
    run.path.mkdir(parents=True, exist_ok=True)
    tries = run.path / "tries"
    tries.write_text(tries.read_text() + "." if tries.exists() else ".")
    total = 20

    def tell(kind, **facts):
        event = {"stage": "teach", "done": None, "total": None, "text": "", "seconds": None}
        on_event(SimpleNamespace(**{**event, "kind": kind, **facts}))

    tell("start")
    if orders.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (run.path / "child").write_text(str(child.pid))
    (run.path / "environ").write_text(" ".join(os.environ.values()))
    if orders.get("tells_key"):
        key = secrets["teacher"].get_secret_value()
        (run.path / "key_length").write_text(str(len(key)))
        raise errors.TeacherRefused(f"the endpoint refused the key {key}")
    if orders.get("error"):
        raise getattr(errors, orders["error"])(orders["text"])
    if orders.get("fails_first") and len(tries.read_text()) == 1:
        raise errors.TeacherError("the teacher is away")
    seconds = 0 if len(tries.read_text()) > 1 else orders.get("seconds", 0)
    for done in range(total + 1):
        time.sleep(seconds / total)
        tell("progress", done=done, total=total)
    tell("done", text=f"{total} responses", seconds=0.1)
    if not orders.get("no_model"):
        run.model.mkdir()


if __name__ == "__main__":
    sys.exit(main(distill=distill))
