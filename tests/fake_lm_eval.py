"""A command that takes lm-eval's arguments and writes a results file like its own."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

# As lm-eval 0.4.13 writes it: counts and names stand among the figures, groups have no n-samples.
RESULTS = {
    "results": {
        "arc_easy": {
            "name": "arc_easy",
            "alias": "arc_easy",
            "sample_len": 100,
            "acc,none": 0.5,
            "acc_stderr,none": 0.050251890762960605,
            "acc_norm,none": 0.4,
            "acc_norm_stderr,none": "N/A",
            "brier_score,none": 0.4,
            "brier_score_stderr,none": 0.02,
        },
        "wikitext": {
            "name": "wikitext",
            "alias": "wikitext",
            "sample_len": 62,
            "word_perplexity,none": 12.0,
            "word_perplexity_stderr,none": "N/A",
        },
        "riddles": {
            "name": "riddles",
            "alias": "riddles",
            "sample_len": 40,
            "sample_count": {"exact_match,strict": 40},
            "exact_match,strict": 0.0,
            "exact_match_stderr,strict": 0.0,
        },
    },
    "group_subtasks": {"riddles": ["riddles_old", "riddles_new"]},
    "versions": {"arc_easy": 1.0, "wikitext": 2.0},
    "n-shot": {"arc_easy": 0},
    "n-samples": {
        "arc_easy": {"original": 2376, "effective": 100},
        "wikitext": {"original": 62, "effective": 62},
    },
    "higher_is_better": {
        "arc_easy": {"acc": True, "acc_norm": True, "brier_score": False},
        "wikitext": {"word_perplexity": False},
    },
    "lm_eval_version": "0.4.13",
}
# 50 of 100 right; the mean of brier_score's marks is not its figure, as with a perplexity.
SAMPLES = [
    {"doc_id": i, "doc_hash": f"h{i}", "filter": "none", "acc": float(i < 50), "brier_score": 0.1}
    for i in range(100)
]
FAKE = """#!{python}
import json, os, pathlib, sys
logs = sys.argv.pop() == "--log_samples"
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--tasks"] == "broken":
    raise ValueError("Tasks not found: broken")
if given["--tasks"] == "silent":
    sys.exit(0)
out = pathlib.Path(given["--output_path"]) / "model"
out.mkdir(parents=True, exist_ok=True)
tree = json.loads({results!r})
tree["asked"] = [given, sorted(k for k in os.environ if k.startswith("PYTHON")), os.getcwd()]
(out / "results_2026-11-22.json").write_text(json.dumps(tree))
if logs:
    rows = json.loads({samples!r})
    lines = "".join(json.dumps(row) + "\\n" for row in rows)
    (out / "samples_arc_easy_2026-11-22.jsonl").write_text(lines)
"""


def fake_lm_eval(folder: Path) -> Path:
    """Writes the executable; tasks called `broken` and `silent` are what they say."""
    file = folder / "lm_eval"
    file.write_text(
        FAKE.format(python=sys.executable, results=json.dumps(RESULTS), samples=json.dumps(SAMPLES))
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file
