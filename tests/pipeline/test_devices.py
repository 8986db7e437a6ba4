"""An artefact keeps what it did on a device; where it does not fit, what does is named."""

import asyncio
from pathlib import Path

import pytest
from tiny import tiny_llama

from potstill.errors import ExportError
from potstill.examine.device import DeviceTrial, try_on_device
from potstill.export.gguf import export_gguf
from potstill.export.huggingface import export_huggingface
from potstill.export.manifest import DEVICES, write_manifest
from potstill.models.catalog import find_model
from potstill.models.devices import read_device
from potstill.pipeline.artefacts import own_prompts
from potstill.pipeline.context import weights_key
from potstill.pipeline.devices import (
    Tried,
    artefacts,
    refuse_what_does_not_fit,
    runnable,
    trials_of,
    try_artefacts,
)
from potstill.rundir import RunDir, write_jsonl


def trial(device="pi-2gb", **facts):
    found = {"limit_bytes": 10**9, "threads": 2, "context": 512, "fits": True, **facts}
    return DeviceTrial(device=device, **found)


def taken(place, device):
    """What a model takes, measured."""
    found = asyncio.run(try_on_device(find_model(str(place)), device, (), only_memory=True))
    assert found.fits
    return int(found.metrics["memory"].value)


def limited(context, num_bytes):
    return read_device(f"{num_bytes / 1e6:.3f}mb:1:{context}")


def test_an_artefact_that_does_not_fit_ends_the_command_with_reason_and_way_out():
    good = Tried(name="gguf:q4_0", trial=trial())
    refuse_what_does_not_fit([good])
    bad = Tried(
        name="gguf:q8_0",
        trial=trial(fits=False, why="it took more than 1.0 GB while it answered"),
        way_out="gguf:q4_0 would",
    )
    message = "gguf:q8_0 does not fit pi-2gb: it took more than 1.0 GB.*; gguf:q4_0 would"
    with pytest.raises(ExportError, match=message):
        refuse_what_does_not_fit([good, bad])


def test_what_was_found_on_devices_is_no_part_of_the_artefact(tmp_path):
    folder = tiny_llama(tmp_path / "m")
    plain = write_manifest(folder, format="huggingface", quant="f32", main="x", source=folder)
    key = weights_key(folder)
    write_jsonl(folder / DEVICES, [trial(), trial("pi-4gb")])
    assert weights_key(folder) == key
    again = write_manifest(folder, format="huggingface", quant="f32", main="x", source=tmp_path)
    assert again.files == plain.files
    assert [one.device for one in trials_of(folder)] == ["pi-2gb", "pi-4gb"]


def test_what_runs_of_an_export_is_its_gguf_file_or_its_folder(tmp_path):
    run = RunDir(tmp_path)
    source = tiny_llama(tmp_path / "source")
    export_gguf(source, run.export("gguf:f16"), quant="f16")
    export_huggingface(source, run.export("huggingface"))
    adapter = run.export("huggingface:adapter")
    adapter.mkdir()
    write_manifest(adapter, format="huggingface", quant="adapter", main="a", source=source)
    assert artefacts(run) == {
        "gguf:f16": run.export("gguf:f16") / "model-f16.gguf",
        "huggingface": run.export("huggingface"),
    }
    assert runnable(adapter) is None


@pytest.mark.slow
def test_the_largest_file_that_fits_is_named_where_a_larger_one_does_not(tmp_path):
    pytest.importorskip("xllamacpp")
    run = RunDir(tmp_path)
    source = tiny_llama(tmp_path / "source", hidden=512, layers=6)
    for quant in ("f32", "f16", "q8_0"):
        export_gguf(source, run.export(f"gguf:{quant}"), quant=quant)
    places = artefacts(run)
    device = limited(256, taken(places["gguf:f16"], limited(256, 2 * 10**9)) + 12_000_000)
    told = []
    asked = {"gguf:f32": places["gguf:f32"]}
    (one,) = try_artefacts(asked, [device], own_prompts(), others=places, on_event=told.append)
    assert not one.trial.fits
    assert one.way_out == "gguf:f16 would, which the run has already"
    assert told[-2].text == "gguf:f32 does not fit"
    assert trials_of(run.export("gguf:f32")) == [one.trial]
    assert not (run.export("gguf:f16") / DEVICES).exists(), "it was not asked about"
    del places["gguf:q8_0"]
    found = try_artefacts(places, [device], own_prompts()[:2], on_event=told.append)
    assert {one.name: (one.trial.fits, one.way_out) for one in found} == {
        "gguf:f16": (True, ""),
        "gguf:f32": (False, "gguf:f16 would"),
    }
    assert len(trials_of(run.export("gguf:f32"))) == 1, "a device's later trial replaces the first"


@pytest.mark.slow
def test_a_context_that_is_short_enough_is_named_where_no_other_file_is_smaller(smollm2):
    pytest.importorskip("xllamacpp")
    device = limited(512, taken(smollm2.source, limited(256, 2 * 10**9)) + 2_000_000)
    places = {"it": Path(smollm2.source)}
    (one,) = try_artefacts(places, [device], own_prompts(), on_event=lambda _: None)
    assert not one.trial.fits and "a context of 512 tokens is 12 MB" in one.trial.why
    assert one.way_out.startswith("with a context of 256 tokens it would: --device")
    assert one.way_out.endswith("mb:1:256")
