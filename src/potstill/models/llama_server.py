"""The process around llama.cpp's server: python -m potstill.models.llama_server FILE ...

It writes its address as one line to standard output once the weights are read, and ends when
its standard input does: so it never outlives whoever started it, however that one ended.
"""

from __future__ import annotations

import os
import sys

AS_ON_DEVICE = "as-on-device"
"""Without a GPU."""


def main(arguments: list[str]) -> None:
    """Serves FILE on a free loopback port: FILE CONTEXT_TOKENS SLOTS THREADS [as-on-device]."""
    import xllamacpp

    file, context, slots, threads, *others = arguments
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = int(slots)
    params.n_ctx = int(context) * int(slots)  # shared out among the slots
    params.cpuparams.n_threads = int(threads)
    params.cpuparams_batch.n_threads = int(threads)
    params.use_jinja = True
    params.verbosity = 0
    params.ui = False
    # The samplers that a request does not name must not cut the distribution behind its back.
    params.sampling.top_k = 0
    params.sampling.min_p = 0.0
    params.sampling.top_p = 1.0
    # Else it keeps what it knows of earlier prompts, up to 8 GiB, which hardly ever come again.
    params.cache_ram_mib = 0
    if AS_ON_DEVICE in others:
        params.n_gpu_layers = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    os._exit(0)  # the server's own threads would keep the process


if __name__ == "__main__":
    main(sys.argv[1:])
