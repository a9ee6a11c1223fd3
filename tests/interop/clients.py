"""Tests a real sessiond with gRPC libraries other than C core and tonic: grpc-js, connect-node and grpc-go.

    python tests/interop/clients.py target/debug/sessiond NODE_MODULES GRPC_GO [-v] [TestClass[.test_name]]

NODE_MODULES is the folder with the installed packages of clients/package.json. GRPC_GO is the binary built from clients/grpc-go.
Each library has a small program in clients/ that reads requests for calls and writes the answers, as lines of JSON.
"""

import json
import os
import pathlib
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request

import google.rpc
import interop
from interop import DEADLINE, GATEWAY_OPTIONS, INT64_MAX, INT64_MIN, ROOT, SERVICE_CONFIG, Server

CLIENTS = pathlib.Path(__file__).parent / "clients"
INCLUDES = [str(ROOT / "proto"), str(pathlib.Path(google.rpc.__path__[0]).parents[1])]
GRPC_TOOLS = str(pathlib.Path(__import__("grpc_tools").__file__).parent / "_proto")
MODULES = GRPC_GO = None  # set by main


def describe(folder):
    """Writes a FileDescriptorSet with our protos and the types of error details. Returns its path."""
    out = f"{folder}/descriptors.bin"
    protos = [str(path) for path in (ROOT / "proto").rglob("*.proto")]
    paths = [f"-I{path}" for path in (*INCLUDES, GRPC_TOOLS)]
    options = ["--include_imports", f"--descriptor_set_out={out}", "google/rpc/error_details.proto", "google/rpc/status.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *options, *protos], check=True)
    return out


class CallFailed(Exception):
    """The status of a failed call."""

    def __init__(self, end):
        super().__init__(f"{end['code']}: {end.get('message')} {end.get('details')}")
        self.code, self.details = end["code"], end.get("details") or {}

    def reason(self):
        return self.details.get("google.rpc.ErrorInfo", {}).get("reason")


class Client:
    """A process that makes calls through one of the libraries."""

    def __init__(self, command, address, descriptors, **config):
        config |= {
            "address": address, "descriptors": descriptors, "includes": [*INCLUDES, GRPC_TOOLS], "modules": MODULES,
            "options": GATEWAY_OPTIONS,
        }
        env = os.environ | {"GRPC_GO_RETRY": "on"}  # needed by grpc-go before 1.40
        self.process = subprocess.Popen(
            [*command, json.dumps(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.answers, self.next_id, self.lock = {}, 0, threading.Lock()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            answer = json.loads(line)
            self.answers[answer["id"]].put(answer)
        for waiting in list(self.answers.values()):
            waiting.put({"end": {"code": "UNKNOWN", "message": "the client process has exited"}})

    def begin(self, method, request, timeout=10):
        """Starts a call. Returns the queue of its answers."""
        with self.lock:
            self.next_id += 1
            answers = self.answers[self.next_id] = queue.Queue()
            line = {"id": self.next_id, "method": method, "request": request, "timeout": timeout}
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
        return answers

    def call(self, method, timeout=10, **request):
        answers = self.begin(method, request, timeout)
        first = answers.get(timeout=timeout + DEADLINE)
        if "end" in first:
            raise CallFailed(first["end"])
        assert answers.get(timeout=DEADLINE)["end"]["code"] == "OK"
        return first["message"]

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        self.process.stdout.close()


class Cases:
    """The tests that every library must pass."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="sessiond-interop-")
        cls.addClassCleanup(folder.cleanup)
        cls.descriptors = describe(folder.name)

    def server(self, *flags, **options):
        server = Server(*flags, **options)
        self.addCleanup(server.__exit__)
        return server

    def client(self, server, config=SERVICE_CONFIG, **options):
        client = Client(self.command(), server.address, self.descriptors, serviceConfig=config, **options)
        self.addCleanup(client.close)
        return client

    def call(self, client, method, **request):
        """Makes a call. If the library does not retry by itself, retries as the README describes."""
        if self.RETRIES:
            return client.call(method, **request)
        end, ceiling = time.monotonic() + 10, 0.1
        while True:
            try:
                return client.call(method, **request)
            except CallFailed as failed:
                # connect-node reports INTERNAL for a call that Node had not sent yet when the server's GOAWAY arrived.
                if failed.code not in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"):
                    raise
                delay = failed.details.get("google.rpc.RetryInfo", {}).get("retryDelay", "0s")
                wait = max(random.uniform(0, ceiling), float(delay.rstrip("s")))
                if time.monotonic() + wait > end:
                    raise
                time.sleep(wait)
                ceiling = min(2 * ceiling, 1)

    def refusals(self, server, reason):
        with urllib.request.urlopen(f"http://{server.admin_address}/metrics", timeout=DEADLINE) as response:
            prefix = f'sessiond_refused_total{{reason="{reason}"}} '
            (line,) = [line for line in response.read().decode().splitlines() if line.startswith(prefix)]
            return int(line.removeprefix(prefix))

    def test_64_bit_ids_are_not_truncated(self):
        client = self.client(self.server())
        ids = ["0", "-1", str(INT64_MIN), str(INT64_MAX), str(2**53 + 1)]
        sessions = {(key, session) for key in ids for session in ids}
        for key, session in sessions:
            created = client.call("CreateSession", sessionId=session, authKeyId=key)
            self.assertIs(created["created"], True)
        stream = client.begin("Subscribe", {"snapshot": True})
        held, synced = set(), None
        while synced is None:
            message = stream.get(timeout=DEADLINE)["message"]
            for session in message.get("snapshot", {}).get("sessions", []):
                held.add((session["authKeyId"], session["sessionId"]))
            synced = message.get("synced")
        self.assertEqual(held, sessions)
        self.assertEqual(int(synced["sessionCount"]), len(sessions))
        for _ in range(20):
            lease = client.call("GrantLease", ttl={"seconds": 9, "nanos": 0} if self.DURATIONS_AS_OBJECTS else "9s")
            self.assertIn(int(lease["leaseId"]), range(1, 2**53), "the lease id does not fit JavaScript's numbers")

    def test_errors_carry_details(self):
        client = self.client(self.server())
        with self.assertRaises(CallFailed) as caught:
            client.call("HasSession")
        self.assertEqual((caught.exception.code, caught.exception.reason()), ("INVALID_ARGUMENT", "SESSION_ID_MISSING"))
        (violation,) = caught.exception.details["google.rpc.BadRequest"]["fieldViolations"]
        self.assertEqual(violation["field"], "session_id")

    def test_a_compressed_request_is_refused_with_a_reason(self):
        client = self.client(self.server(), compress=True)
        with self.assertRaises(CallFailed) as caught:
            client.call("BatchHasSessions", sessionIds=["0"] * 5000)
        self.assertEqual((caught.exception.code, caught.exception.reason()), ("UNIMPLEMENTED", "COMPRESSED_REQUEST"))

    def test_a_rate_limit_delays_calls_and_fails_none(self):
        server = self.server("--rate-limit", "5", "--rate-burst", "5")
        client = self.client(server)
        begun = time.monotonic()
        for id_ in range(12):
            self.assertTrue(self.call(client, "CreateSession", sessionId=str(id_))["created"])
        self.assertGreater(time.monotonic() - begun, 1.3, "12 calls at 5 a second, with a burst of 5")
        self.assertGreater(self.refusals(server, "RATE_LIMITED"), 0)
        self.assertLessEqual(self.refusals(server, "RATE_LIMITED"), 7, "retries come too early")

    def test_permanent_errors_are_not_retried(self):
        server = self.server("--max-message-bytes", "1024")
        client = self.client(server)
        with self.assertRaises(CallFailed) as caught:
            client.call("BatchHasSessions", sessionIds=["0"] * 1000)
        self.assertEqual((caught.exception.code, caught.exception.reason()), ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE"))
        self.assertEqual(self.refusals(server, "REQUEST_TOO_LARGE"), 1)

    def test_a_quick_restart_fails_no_call(self):
        # A loopback address whose ports no client takes as a local port while the server is down.
        server = self.server(listen=f"127.{random.randint(1, 254)}.0.1:0")
        client = self.client(server)
        stream = client.begin("Subscribe", {})
        self.assertIn("subscribed", stream.get(timeout=DEADLINE)["message"])
        over, answered, errors = threading.Event(), [0], []

        def calls():
            while not over.is_set():
                try:
                    self.call(client, "CreateSession", sessionId=str(random.randint(0, 99)))
                    answered[0] += 1
                except CallFailed as failed:
                    errors.append(failed)
                time.sleep(0.002)

        def wait_for_answers():
            end, until = time.monotonic() + DEADLINE, answered[0] + 50
            while answered[0] < until and not errors:
                self.assertLess(time.monotonic(), end, "no call is answered")
                time.sleep(0.01)

        callers = [threading.Thread(target=calls) for _ in range(3)]
        for caller in callers:
            caller.start()
        try:
            wait_for_answers()
            server.terminate()
            self.assertEqual(server.exit_code(11), 0)
            self.server(listen=server.address)
            wait_for_answers()
        finally:
            over.set()
            for caller in callers:
                caller.join()
        self.assertEqual([str(error) for error in errors], [])
        while "end" not in (last := stream.get(timeout=DEADLINE)):
            self.assertTrue(last["message"]["cursor"])
        ended = CallFailed(last["end"])
        self.assertEqual((ended.code, ended.reason()), ("UNAVAILABLE", "SERVER_DRAINING"))
        self.assertIn("google.rpc.RetryInfo", ended.details)

    def test_no_call_fails_when_connections_reach_their_maximum_age(self):
        # Without retries from a service config: a GOAWAY must not fail a call.
        client = self.client(self.server("--max-connection-age", "1s"), config="{}")
        stream = client.begin("Subscribe", {"snapshot": True})
        begun, id_ = time.monotonic(), 0
        while time.monotonic() - begun < 4:
            id_ += 1
            self.assertTrue(self.call(client, "CreateSession", sessionId=str(id_))["created"])
        cursor = None
        while "end" not in (last := stream.get(timeout=DEADLINE)):
            cursor = last["message"]["cursor"] or cursor
        ended = CallFailed(last["end"])
        self.assertEqual(ended.code, "UNAVAILABLE")
        self.assertIn("google.rpc.RetryInfo", ended.details)
        resumed = client.begin("Subscribe", {"cursor": cursor})
        self.assertIn("subscribed", resumed.get(timeout=DEADLINE)["message"])


class GrpcJs(Cases, unittest.TestCase):
    RETRIES, DURATIONS_AS_OBJECTS = True, True

    def command(self):
        return ["node", str(CLIENTS / "grpc-js.js")]


class ConnectNode(Cases, unittest.TestCase):
    RETRIES, DURATIONS_AS_OBJECTS = False, False

    def command(self):
        return ["node", str(CLIENTS / "connect-node.js")]


class GrpcGo(Cases, unittest.TestCase):
    RETRIES, DURATIONS_AS_OBJECTS = True, False

    def command(self):
        return [GRPC_GO]


if __name__ == "__main__":
    if len(sys.argv) < 4 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} PATH-OF-SESSIOND NODE_MODULES GRPC_GO [unittest's arguments]")
    interop.BINARY, MODULES, GRPC_GO = (sys.argv.pop(1) for _ in range(3))
    unittest.main(verbosity=1)
