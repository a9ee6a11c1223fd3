"""Runs histories of faults against a client package, and checks that registry, gateways and mirrors agree at the end.

    python tests/clients/run.py SERVER [--client python|typescript|rust] [--storage memory|file|redis] [--seeds 1..20]
                                [--seed N] [--history NAME] [--jobs N] [--short] [--in-turn] [-v]

Without a client or a storage, all of them. Without seeds and histories: all scripted histories, the seeds in seeds/ and
the seeds 1 to 20. With --short, each scripted history runs on one storage, on memory if it can. With --in-turn, each
seed runs on one storage: the storages take turns. Needs grpcio and grpcio-tools, and redis-server for the storage redis.
PROTOCOL.md describes how a client is driven. If a history fails, it is printed, and the exit code is 1.

SESSIOND_AGENT_LOG=1 and SESSIOND_SERVER_LOG=1 add the logs of the agents and the servers.
"""

import argparse
import asyncio
import pathlib
import sys
import time
import traceback

import random_histories
import scripted_histories
from client_process import COMMANDS, check_build

HERE = pathlib.Path(__file__).resolve().parent
CLIENTS, STORAGES = ("python", "typescript", "rust"), ("memory", "file", "redis")
LIMIT = 300  # seconds for one history, beyond which something hangs


def kept_seeds(client, storage):
    """Reads the seeds that have found something. A line: the seed, the client, the storage, and what it found."""
    seeds = []
    for line in (HERE / "seeds/found.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            seed, found_in, on, _ = line.split(maxsplit=3)
            if found_in in (client, "all") and on in (storage, "all"):
                seeds.append(int(seed))
    return sorted(set(seeds))


def numbers(text):
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


async def run_one(arguments, client, storage, name, history, slots):
    async with slots:
        begun = time.monotonic()
        error = fleet = None
        try:
            fleet = await asyncio.wait_for(history(), LIMIT)
        except Exception:
            error = traceback.format_exc()
        passed = error is None and not fleet.faults
        print(f"{'ok  ' if passed else 'FAIL'} {client} {storage} {name}: {time.monotonic() - begun:.1f} s", flush=True)
        if not passed or arguments.verbose:
            if fleet is not None:
                fleet.show()
            if error:
                print(error)
            sys.stdout.flush()
        return passed


def histories(arguments, client, storage):
    """Returns the histories to run, by name."""
    chosen = arguments.history or ([] if arguments.seeds or arguments.seed is not None else scripted_histories.DEFAULT)
    chosen = [name for name in chosen if storage in scripted_histories.storages_of(name)]
    if arguments.short:
        chosen = [name for name in chosen if storage == scripted_histories.storages_of(name)[0]]
    for name in chosen:
        yield name, lambda name=name: scripted_histories.run(name, arguments.server, client, storage)
    if arguments.seed is not None:
        seeds = [arguments.seed]
    elif arguments.seeds or not arguments.history:
        seeds = list(arguments.seeds or [*kept_seeds(client, storage), *range(1, 21)])
    else:
        seeds = []
    if arguments.in_turn:
        kept = kept_seeds(client, storage)
        seeds = [seed for seed in seeds if seed in kept or STORAGES[seed % len(STORAGES)] == storage]
    for seed in dict.fromkeys(seeds):
        yield f"seed {seed}", lambda seed=seed: random_histories.run(arguments.server, client, storage, seed)


async def run_client(arguments, client, slots):
    """Runs the histories of one client, a storage after the other. Returns whether each has passed."""
    results = []
    for storage in arguments.storage or STORAGES:
        begun, jobs = time.monotonic(), []
        for name, history in histories(arguments, client, storage):
            jobs.append(asyncio.ensure_future(run_one(arguments, client, storage, name, history, slots)))
            if not name.startswith("seed"):
                await jobs[-1]
        results += await asyncio.gather(*jobs)
        print(f"---- {client} on {storage}: {len(jobs)} histories in {time.monotonic() - begun:.0f} s", flush=True)
    return results


async def main(arguments):
    for client in arguments.client or CLIENTS:
        check_build(client)
    # A history mostly waits, so several run at a time: of each client one scripted history, because these measure, or
    # any number of random ones.
    slots = asyncio.Semaphore(arguments.jobs)
    clients = [run_client(arguments, client, slots) for client in arguments.client or CLIENTS]
    results = sum(await asyncio.gather(*clients), [])
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="the program sessiond")
    parser.add_argument("--client", action="append", choices=sorted(COMMANDS))
    parser.add_argument("--storage", action="append", choices=STORAGES)
    parser.add_argument("--seeds", type=numbers)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--history", action="append", choices=sorted(scripted_histories.HISTORIES))
    parser.add_argument("--jobs", type=int, default=6, help="how many histories run at a time (default: 6)")
    parser.add_argument("--short", action="store_true", help="run each scripted history on one storage")
    parser.add_argument("--in-turn", action="store_true", help="run each seed on one storage, in turn")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the histories that pass, too")
    sys.exit(asyncio.run(main(parser.parse_args())))
