"""A device is a name or numbers, and a wrong one is answered with the nearest."""

import pytest

from potstill.errors import ConfigError
from potstill.models.devices import DEVICES, read_device


@pytest.mark.parametrize(
    ("text", "gigabytes", "threads", "context"),
    [
        ("phone-4gb", 2, 2, 2048),
        ("Pi-8GB", 7, 4, 4096),
        ("pi-8gb:1", 7, 1, 4096),
        ("pi-8gb:1:512", 7, 1, 512),
        ("3gb", 3, 2, 2048),
        ("1.5gb:4", 1.5, 4, 2048),
        ("300mb:1:1024", 0.3, 1, 1024),
    ],
)
def test_a_device_is_a_name_or_a_memory_with_threads_and_context(text, gigabytes, threads, context):
    found = read_device(text)
    assert found.name == text.lower()
    assert found.memory_bytes == gigabytes * 1e9
    assert (found.threads, found.context) == (threads, context)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("phone-4g", ["did you mean phone-4gb?", "laptop-16gb", "3gb:2:2048"]),
        ("toaster", ["no device is called 'toaster'", "There are: edge-1gb"]),
        ("4", ["no device is called '4'"]),
        ("0gb", ["needs memory"]),
        ("pi-8gb:0", ["1 to 64 threads"]),
        ("pi-8gb:65", ["1 to 64 threads"]),
        ("pi-8gb:two", ["come threads and then the context", "pi-8gb:2:2048"]),
        ("pi-8gb:2:", ["come threads"]),
        ("pi-8gb:2:100", ["256 tokens or more"]),
        ("pi-8gb:2:512:1", ["come threads"]),
        ("", ["no device is called ''"]),
    ],
)
def test_what_is_no_device_is_refused_with_the_way_out(text, parts):
    with pytest.raises(ConfigError) as caught:
        read_device(text)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_every_device_leaves_memory_for_its_system_and_has_one_to_four_threads():
    for device in DEVICES.values():
        ram = float(device.name.rpartition("-")[2].removesuffix("gb"))
        assert device.memory_bytes < ram * 1e9
        assert 1 <= device.threads <= 4
        assert device.context >= 1024
