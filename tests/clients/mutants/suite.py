"""Breaks each client on purpose, and checks that the suite notices.

    python tests/clients/mutants/suite.py SERVER [--client python|typescript|rust] [--mutant NAME]

Each mutant runs on the history that should notice it. The exit code is 1 if one passes. The Rust client is compiled for
each of its mutants.
"""

import argparse
import asyncio
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import random_histories  # noqa: E402
import scripted_histories  # noqa: E402
from client_process import COMMANDS  # noqa: E402

import rust  # noqa: E402

# The name of a mutant, and the history or the seed that notices it.
MUTANTS = {
    "takes_from_anyone": "gateway_returns_after_its_client_has_moved",
    "leaves_ghosts": "create_is_delayed_past_the_close",
    "destroys_under_any_lease": "old_connection_closes_late",
    "never_closes": "takeover_within_a_partition",
    "restores_nothing": "registry_is_lost",
    "closes_all_when_the_lease_is_lost": "registry_is_lost",
    "stops_without_linger": "sessions_move_during_a_linger",
    "first_close_ends_the_session": "first_of_two_connections_closes",
    "forgets_the_cursor": "takeover_within_a_partition",
    "keeps_the_old_token": "token_changes",
    "ignores_moves": "takeover_within_a_partition",
    "reads_ahead": "slow_consumer",
    "never_notices_silence": "connections_die_silently",
    "rounds_ids": 1,
}
CLIENTS = ("python", "typescript", "rust")
# The clients that have a mutant, if not all do.
ONLY = {"never_notices_silence": ("python", "rust"), "rounds_ids": ("typescript",), "reads_ahead": ("python", "typescript")}


async def main(arguments):
    passed = 0
    for client in arguments.client or CLIENTS:
        for name in arguments.mutant or MUTANTS:
            if client not in ONLY.get(name, CLIENTS):
                continue
            os.environ["SESSIOND_MUTANT"] = name
            if client == "rust":
                COMMANDS["rust"] = [str(rust.build(name))]
            history = MUTANTS[name]
            if isinstance(history, int):
                fleet = await random_histories.run(arguments.server, client, "memory", history)
            else:
                fleet = await scripted_histories.run(history, arguments.server, client, "memory")
            passed += not fleet.faults
            faults = fleet.faults[0].strip().splitlines()[-1][:150] if fleet.faults else "NOT NOTICED"
            print(f"{client} {name}, by {history if isinstance(history, str) else f'seed {history}'}: {faults}", flush=True)
    return 1 if passed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="the program sessiond")
    parser.add_argument("--client", action="append", choices=CLIENTS)
    parser.add_argument("--mutant", action="append", choices=sorted(MUTANTS))
    sys.exit(asyncio.run(main(parser.parse_args())))
