"""Tests a real sessiond with gRPC's C core, to show that the service speaks gRPC in general and not only with tonic.

    python tests/interop/interop.py target/debug/sessiond [-v] [TestClass[.test_name]]

Install the packages of requirements.txt first. Stubs are generated into a temporary folder, from proto/ or from the folder named
by SESSIOND_TEST_PROTOS: with protos-0.1, the tests act as a client of 0.1. Every server belongs to this run and listens on
free ports. Tests wait for conditions, with a deadline, and never for a fixed time.

SESSIOND_INTEROP=long makes the outages of class Outages as long as real ones, which takes three minutes.
"""

import atexit
import contextlib
import json
import math
import os
import pathlib
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

import grpc
import trustme
from google.protobuf import descriptor_pool, duration_pb2, empty_pb2, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import proto_reflection_descriptor_database, reflection_pb2
from grpc_status import rpc_status

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "clients"))
from stubs import ROOT, lease_grpc, lease_pb, pb, pb_grpc  # noqa: E402

DEADLINE = 20  # seconds, for anything that should be fast
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_BATCH = 65_536
IS_LONG = os.environ.get("SESSIOND_INTEROP") == "long"
README = (ROOT / "README.md").read_text()
GATEWAYS = (ROOT / "docs/gateways.md").read_text()
GATEWAY_OPTIONS = json.loads(re.search(r'```json\n(\{\n  "grpc\..*?\n\})\n```', GATEWAYS, re.DOTALL)[1])
SERVICE_CONFIG = re.search(r'```json\n(\{\n  "loadBalancingConfig".*?\n\})\n```', README, re.DOTALL)[1]
BINARY = None  # set by main

CREATED, DESTROYED = pb.SESSION_EVENT_TYPE_CREATED, pb.SESSION_EVENT_TYPE_DESTROYED
# The protos of 0.1 have no MOVED events, and streams without placements do not receive any.
MOVED = getattr(pb, "SESSION_EVENT_TYPE_MOVED", None)


def seconds(value):
    """Returns a google.protobuf.Duration of this many seconds."""
    nanos = round(value * 1e9)
    whole = int(nanos / 1e9)
    return duration_pb2.Duration(seconds=whole, nanos=nanos - whole * 10**9)


class Server:
    """A new sessiond on free ports, and a channel to it."""

    def __init__(self, *flags, listen="127.0.0.1:0", storage="memory:"):
        self.process = subprocess.Popen(
            [BINARY, "serve", "--listen", listen, "--admin-listen", "127.0.0.1:0", "--storage", storage,
             "--log-format", "json", *flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("SESSIOND_")} | {"SESSIOND_LOG": "info"},
        )
        atexit.register(self.kill)
        self.log, self._lines = [], queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        listening = self._wait_for("listening")
        self.address, self.admin_address = listening["address"], listening["admin_address"]
        self.channel = grpc.insecure_channel(self.address)
        self._channels = [self.channel]
        self.sessions = pb_grpc.SessionServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def _read(self):
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def _wait_for(self, message):
        """Waits for a log line with this message. Returns its fields."""
        end = time.monotonic() + DEADLINE
        while (left := end - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise AssertionError(f"sessiond exited with {self.process.wait()}:\n{''.join(self.log)}")
            with contextlib.suppress(ValueError):
                fields = json.loads(line).get("fields", {})
                if fields.get("message") == message:
                    return fields
        raise AssertionError(f"no '{message}' in the log:\n{''.join(self.log)}")

    def connect(self):
        """Returns a stub with a new connection. By default, gRPC's channels to one address share a connection."""
        channel = grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])
        self._channels.append(channel)
        return pb_grpc.SessionServiceStub(channel)

    def subscribe(self, **request):
        return Observer(self.sessions, pb.SubscribeRequest(**request))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self, timeout):
        return self.process.wait(timeout)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for channel in self._channels:
            channel.close()
        self.kill()


class Observer:
    """One Subscribe stream. Every message is checked against the general promises as it is read."""

    def __init__(self, stub, request):
        self.request = request
        self.held = set() if request.snapshot else None
        self.in_snapshot = bool(request.snapshot)
        self.error, self.cursor, self.count = None, None, 0
        self.exact = not request.types
        self._messages = queue.Queue()
        self.call = stub.Subscribe(request)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            for message in self.call:
                self._messages.put(message)
            self._messages.put(StopIteration("the stream ended without a status"))
        except grpc.RpcError as error:
            self._messages.put(error)

    def next(self, timeout=DEADLINE):
        """Returns the next message, or None if the stream has ended with self.error."""
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"no message within {timeout} s, after {self.count} messages") from None
        if isinstance(message, Exception):
            self.error = message
            return None
        self._check(message)
        self.cursor = message.cursor
        self.count += 1
        return message

    def _check(self, message):
        body = message.WhichOneof("body")
        assert body is not None, "a message without a body"
        assert (body == "subscribed") == (self.count == 0), f"message {self.count} is {body}"
        if body == "reset":
            self.held, self.in_snapshot = set(), True
        elif body == "snapshot":
            assert self.in_snapshot, "an unexpected snapshot"
            for session in message.snapshot.sessions:
                self._insert((session.auth_key_id, session.session_id))
        elif body == "synced":
            assert self.in_snapshot, "synced without a snapshot"
            self.in_snapshot = False
            if self.exact:
                assert message.synced.session_count == len(self.held), (message.synced.session_count, len(self.held))
        elif body == "events":
            assert message.events.events, "events without an event"
            for event in message.events.events:
                self._apply(event)
        if body == "subscribed" or not self.in_snapshot:
            assert message.cursor, f"{body} carries no cursor"
            assert message.cursor.isascii() and message.cursor.isprintable(), message.cursor
        else:
            assert not message.cursor, f"{body} carries a cursor before synced"

    def _apply(self, event):
        session = event.auth_key_id, event.session_id
        if event.type == CREATED:
            assert event.reason == pb.DESTROY_REASON_UNSPECIFIED
            self._insert(session)
        elif event.type == MOVED:
            assert event.reason == pb.DESTROY_REASON_UNSPECIFIED and event.lease_id != event.previous_lease_id
        else:
            assert event.type == DESTROYED and event.reason != pb.DESTROY_REASON_UNSPECIFIED
            if self.held is not None and self.exact:
                assert session in self.held, f"{session} is destroyed but was not held"
                self.held.remove(session)

    def _insert(self, session):
        if self.held is not None and self.exact:
            assert session not in self.held, f"{session} is created but was already held"
            self.held.add(session)

    def until(self, body, timeout=DEADLINE):
        """Skips to the next message with this body and returns it. Fails if the stream ends before."""
        end = time.monotonic() + timeout
        while True:
            message = self.next(max(0, end - time.monotonic()))
            assert message is not None, f"the stream ended while waiting for {body}: {self.error}"
            if message.WhichOneof("body") == body:
                return message

    def events(self, count, timeout=DEADLINE):
        """Returns the next count events as (type, auth key, session). Skips heartbeats."""
        events = []
        while len(events) < count:
            message = self.until("events", timeout)
            events += [(e.type, e.auth_key_id, e.session_id) for e in message.events.events]
        assert len(events) == count, f"{len(events)} events instead of {count}"
        return events

    def end(self, timeout=DEADLINE):
        """Skips to the end of the stream. Returns the last message and the error."""
        last, end = None, time.monotonic() + timeout
        while (message := self.next(max(0, end - time.monotonic()))) is not None:
            last = message
        return last, self.error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()


class Case(unittest.TestCase):
    """Tests that share one server. Each test uses a random auth key of its own."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.__exit__)
        cls.sessions = cls.server.sessions

    def setUp(self):
        self.key = random.randint(INT64_MIN, INT64_MAX)

    def create(self, *ids, key=None, **fields):
        """Creates these sessions in one batch."""
        keys = [self.key if key is None else key] * len(ids)
        request = pb.BatchCreateSessionsRequest(session_ids=ids, auth_key_ids=keys, **fields)
        return list(self.sessions.BatchCreateSessions(request, timeout=DEADLINE).created)

    def destroy(self, *ids, key=None, **fields):
        keys = [self.key if key is None else key] * len(ids)
        request = pb.BatchDestroySessionsRequest(session_ids=ids, auth_key_ids=keys, **fields)
        return list(self.sessions.BatchDestroySessions(request, timeout=DEADLINE).destroyed)

    def has(self, *ids, key=None):
        keys = [self.key if key is None else key] * len(ids)
        request = pb.BatchHasSessionsRequest(session_ids=ids, auth_key_ids=keys)
        return list(self.sessions.BatchHasSessions(request, timeout=DEADLINE).exists)

    def mine(self, **request):
        """Subscribes to this test's sessions."""
        return self.server.subscribe(auth_key_ids=[self.key], **request)

    @contextlib.contextmanager
    def refused(self, code, field=None):
        """Expects a call to fail with this code, an ErrorInfo and, if a field is given, a BadRequest violation of it."""
        with self.assertRaises(grpc.RpcError) as caught:
            yield
        self.check_error(caught.exception, code, field)

    def check_error(self, error, code, field=None):
        self.assertEqual(error.code(), code, error.details())
        self.assertTrue(error.details(), "the message is empty")
        details = details_of(error)
        self.assertIn("ErrorInfo", details, error.details())
        self.assertEqual(details["ErrorInfo"].domain, "sessiond")
        self.assertRegex(details["ErrorInfo"].reason, r"^[A-Z][A-Z0-9_]+[A-Z0-9]$")
        if field is not None:
            self.assertIn("BadRequest", details, error.details())
            violations = details["BadRequest"].field_violations
            self.assertIn(field, [violation.field for violation in violations])
            self.assertTrue(all(violation.description for violation in violations))
        return details

    def refused_stream(self, field, **request):
        """Expects Subscribe to refuse this request with INVALID_ARGUMENT before any message."""
        with self.server.subscribe(**request) as observer:
            self.assertIsNone(observer.next(), "the stream started")
            return self.check_error(observer.error, grpc.StatusCode.INVALID_ARGUMENT, field)


def details_of(error):
    """Returns the details of an error, by the name of their type."""
    status = rpc_status.from_call(error)
    if status is None:
        return {}
    details = {}
    for packed in status.details:
        name = packed.type_url.rpartition(".")[2]
        details[name] = getattr(error_details_pb2, name)()
        packed.Unpack(details[name])
    return details


def http_status(url):
    """Returns the status of a GET, or None if nothing listens there."""
    try:
        with urllib.request.urlopen(url, timeout=DEADLINE) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class UnaryCalls(Case):
    def test_every_id_is_valid(self):
        for session_id in (1, 0, -1, INT64_MIN, INT64_MAX):
            for key in (0, self.key, -1, INT64_MIN, INT64_MAX):
                with self.subTest(session_id=session_id, key=key):
                    names = {"session_id": session_id, "auth_key_id": key}
                    has, create, destroy = (
                        pb.HasSessionRequest(**names), pb.CreateSessionRequest(**names), pb.DestroySessionRequest(**names)
                    )
                    self.assertFalse(self.sessions.HasSession(has).exists)
                    self.assertTrue(self.sessions.CreateSession(create).created)
                    self.assertFalse(self.sessions.CreateSession(create).created, "created twice")
                    self.assertTrue(self.sessions.HasSession(has).exists)
                    self.assertTrue(self.sessions.DestroySession(destroy).destroyed)
                    self.assertFalse(self.sessions.DestroySession(destroy).destroyed, "destroyed twice")
                    self.assertFalse(self.sessions.HasSession(has).exists)

    def test_the_same_id_under_two_auth_keys_names_two_sessions(self):
        other = self.key ^ 1
        self.assertEqual(self.create(5), [True])
        self.assertEqual(self.has(5, key=other), [False])
        self.assertEqual(self.create(5, key=other), [True])
        self.assertEqual(self.destroy(5), [True])
        self.assertEqual(self.has(5, key=other), [True])

    def test_a_missing_session_id_is_an_error(self):
        for call, request in (
            (self.sessions.HasSession, pb.HasSessionRequest(auth_key_id=1)),
            (self.sessions.CreateSession, pb.CreateSessionRequest(auth_key_id=1)),
            (self.sessions.DestroySession, pb.DestroySessionRequest(auth_key_id=1)),
        ):
            with self.subTest(type(request).__name__), self.refused(grpc.StatusCode.INVALID_ARGUMENT, "session_id"):
                call(request, timeout=DEADLINE)

    def test_an_unknown_lease_is_an_error(self):
        unknown = 0xDEAD_BEEF_DEAD_BEEF
        code = grpc.StatusCode.FAILED_PRECONDITION
        with self.refused(code):
            self.sessions.CreateSession(pb.CreateSessionRequest(session_id=1, auth_key_id=self.key, lease_id=unknown))
        with self.refused(code):
            self.create(1, 2, lease_id=unknown)
        self.assertEqual(self.has(1, 2), [False, False])

    def test_an_unknown_method_is_unimplemented(self):
        call = self.server.channel.unary_unary(
            "/sessiond.v1.SessionService/NoSuchMethod", empty_pb2.Empty.SerializeToString, empty_pb2.Empty.FromString
        )
        with self.assertRaises(grpc.RpcError) as caught:
            call(empty_pb2.Empty(), timeout=DEADLINE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


    def test_a_compressed_request_is_refused_as_grpc_specifies(self):
        # https://github.com/grpc/grpc/blob/master/doc/compression.md: UNIMPLEMENTED, with the accepted encodings.
        request = pb.BatchHasSessionsRequest(session_ids=[0] * 1000)
        with self.refused(grpc.StatusCode.UNIMPLEMENTED):
            self.sessions.BatchHasSessions(request, compression=grpc.Compression.Gzip, timeout=DEADLINE)

    def test_a_request_over_the_limit_is_refused(self):
        request = pb.BatchHasSessionsRequest(session_ids=range(2_000_000))
        with self.assertRaises(grpc.RpcError) as caught:
            self.sessions.BatchHasSessions(request, timeout=DEADLINE)
        codes = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT
        self.assertIn(caught.exception.code(), codes, caught.exception.details())
        # The connection still works.
        self.assertEqual(self.create(1), [True])

    def test_concurrent_creates_of_a_session_succeed_once(self):
        requests = [pb.CreateSessionRequest(session_id=id_, auth_key_id=self.key) for id_ in range(1000)] * 2
        calls = [self.sessions.CreateSession.future(request, timeout=DEADLINE) for request in requests]
        self.assertEqual(sum(call.result().created for call in calls), 1000)


class BatchCalls(Case):
    def test_batch_answers_are_in_order(self):
        self.create(2, 4)
        self.assertEqual(self.create(1, 2, 3, 4), [True, False, True, False])
        self.assertEqual(self.has(4, 9, 1, -1), [True, False, True, False])
        self.assertEqual(self.destroy(9, 3, 1), [False, True, True])

    def test_duplicates_in_a_batch_count_once(self):
        with self.mine() as observer:
            observer.until("subscribed")
            self.assertEqual(self.create(7, 7, 8, 7), [True, False, True, False])
            self.assertEqual(self.destroy(8, 8, 7), [True, False, True])
            expected = [(CREATED, 7), (CREATED, 8), (DESTROYED, 8), (DESTROYED, 7)]
            self.assertEqual(observer.events(4), [(type_, self.key, id_) for type_, id_ in expected])

    def test_a_batch_without_auth_keys_uses_auth_key_0(self):
        ids = random.sample(range(INT64_MAX), 3)
        request = pb.BatchCreateSessionsRequest(session_ids=ids)
        self.assertEqual(list(self.sessions.BatchCreateSessions(request).created), [True] * 3)
        self.assertEqual(self.has(*ids, key=0), [True] * 3)

    def test_each_session_in_a_batch_may_have_its_own_auth_key(self):
        request = pb.BatchCreateSessionsRequest(session_ids=[1, 1, 1], auth_key_ids=[self.key, self.key ^ 1, self.key])
        self.assertEqual(list(self.sessions.BatchCreateSessions(request).created), [True, True, False])

    def test_an_empty_batch_has_an_empty_answer(self):
        self.assertEqual((self.create(), self.has(), self.destroy()), ([], [], []))

    def batches(self, **lists):
        yield self.sessions.BatchHasSessions, pb.BatchHasSessionsRequest(**lists)
        yield self.sessions.BatchCreateSessions, pb.BatchCreateSessionsRequest(**lists)
        yield self.sessions.BatchDestroySessions, pb.BatchDestroySessionsRequest(**lists)

    def test_lists_of_unequal_length_are_refused(self):
        for ids, keys in (([1, 2], [1]), ([1], [1, 2]), ([], [1])):
            for call, request in self.batches(session_ids=ids, auth_key_ids=keys):
                with self.subTest(request=str(request)), self.refused(
                    grpc.StatusCode.INVALID_ARGUMENT, "auth_key_ids"
                ):
                    call(request, timeout=DEADLINE)

    def test_the_largest_batch_succeeds_in_order(self):
        ids = list(range(-1, MAX_BATCH - 1))
        with self.mine() as observer:
            observer.until("subscribed")
            self.assertEqual(self.create(*ids), [True] * MAX_BATCH)
            self.assertEqual(observer.events(MAX_BATCH), [(CREATED, self.key, id_) for id_ in ids])
            self.assertEqual(self.has(*ids), [True] * MAX_BATCH)
            ids.reverse()
            self.assertEqual(self.destroy(*ids), [True] * MAX_BATCH)
            self.assertEqual(observer.events(MAX_BATCH), [(DESTROYED, self.key, id_) for id_ in ids])

    def test_a_batch_over_the_limit_is_refused(self):
        for keys in ([], [self.key] * (MAX_BATCH + 1)):
            for call, request in self.batches(session_ids=range(MAX_BATCH + 1), auth_key_ids=keys):
                with self.subTest(type(request).__name__), self.refused(
                    grpc.StatusCode.INVALID_ARGUMENT, "session_ids"
                ):
                    call(request, timeout=DEADLINE)
        self.assertEqual(self.has(0, 1), [False, False])


class Streams(Case):
    def test_a_stream_without_a_start_reports_only_later_changes(self):
        self.create(1)
        with self.mine() as observer:
            first = observer.next()
            self.assertEqual(first.subscribed.heartbeat, seconds(15))
            self.assertTrue(first.subscribed.registry_id)
            self.assertTrue(first.cursor)
            self.create(1, 2)
            self.destroy(1)
            self.create(1)
            expected = [(CREATED, 2), (DESTROYED, 1), (CREATED, 1)]
            self.assertEqual(observer.events(3), [(type_, self.key, id_) for type_, id_ in expected])

    def test_snapshot_false_starts_the_stream_now(self):
        self.create(1)
        with self.mine(snapshot=False) as observer:
            observer.next()
            self.create(2)
            self.assertEqual(observer.events(1), [(CREATED, self.key, 2)])

    def test_a_requested_destroy_has_the_reason_requested(self):
        self.create(1)
        with self.mine() as observer:
            observer.next()
            self.destroy(1)
            (event,) = observer.until("events").events.events
            self.assertEqual((event.type, event.reason), (DESTROYED, pb.DESTROY_REASON_REQUESTED))

    def test_a_snapshot_lists_existing_sessions_and_live_events_follow(self):
        self.create(*range(-3, 4))
        with self.mine(snapshot=True) as observer:
            observer.next()
            synced = observer.until("synced")
            self.assertEqual(synced.synced.session_count, 7)
            self.assertEqual(observer.held, {(self.key, id_) for id_ in range(-3, 4)})
            self.destroy(0)
            self.assertEqual(observer.events(1), [(DESTROYED, self.key, 0)])

    def test_a_snapshot_may_be_empty(self):
        with self.mine(snapshot=True) as observer:
            observer.next()
            self.assertEqual(observer.until("synced").synced.session_count, 0)

    def test_a_large_snapshot_fits_the_default_message_limit(self):
        with Server() as server:
            ids = range(200_000)
            for start in range(0, len(ids), MAX_BATCH):
                server.sessions.BatchCreateSessions(
                    pb.BatchCreateSessionsRequest(session_ids=ids[start : start + MAX_BATCH])
                )
            with server.subscribe(snapshot=True) as observer:
                observer.until("synced")
                self.assertEqual(observer.held, {(0, id_) for id_ in ids})

    def test_snapshots_are_exact_while_sessions_change(self):
        ids = range(MAX_BATCH)
        done = threading.Event()
        with Server("--workers", "2") as server, contextlib.ExitStack() as stack:

            def change(sessions):
                while not done.is_set():
                    sessions.BatchDestroySessions(pb.BatchDestroySessionsRequest(session_ids=random.sample(ids, 50)))
                    sessions.BatchCreateSessions(pb.BatchCreateSessionsRequest(session_ids=random.sample(ids, 50)))

            server.sessions.BatchCreateSessions(pb.BatchCreateSessionsRequest(session_ids=ids))
            writers = [threading.Thread(target=change, args=[server.connect()]) for _ in range(3)]
            for writer in writers:
                writer.start()
            # The observer checks every insertion and removal as it arrives, and the count at synced.
            observers, some = [], random.sample(ids, 1000)
            try:
                for _ in range(4):
                    for request in ({}, {"session_ids": [*some, -1]}):
                        request = pb.SubscribeRequest(snapshot=True, **request)
                        observers.append(stack.enter_context(Observer(server.connect(), request)))
                        observers[-1].until("synced")
            finally:
                done.set()
                for writer in writers:
                    writer.join()
            server.sessions.CreateSession(pb.CreateSessionRequest(session_id=-1))
            exists = server.sessions.BatchHasSessions(pb.BatchHasSessionsRequest(session_ids=ids)).exists
            model = {id_ for id_, is_there in zip(ids, exists) if is_there} | {-1}
            for observer in observers:
                while (0, -1) not in observer.held:
                    observer.until("events")
                shown = model.intersection([*some, -1]) if observer.request.session_ids else model
                self.assertEqual(observer.held, {(0, id_) for id_ in shown})

    def test_a_stream_resumes_exactly_after_its_cursor(self):
        with self.mine() as observer:
            cursors = [observer.next().cursor]
            events = []
            for number in range(20):
                self.create(number)
                events.append((CREATED, self.key, number))
                if number % 3 == 0:
                    self.destroy(number)
                    events.append((DESTROYED, self.key, number))
            places = {cursors[0]: 0}
            seen = 0
            while seen < len(events):
                message = observer.until("events")
                seen += len(message.events.events)
                places[message.cursor] = seen
        self.create(1000)
        events.append((CREATED, self.key, 1000))
        for cursor, place in places.items():
            with self.subTest(place=place), self.mine(cursor=cursor) as resumed:
                self.assertEqual(resumed.next().WhichOneof("body"), "subscribed")
                self.assertEqual(resumed.events(len(events) - place), events[place:])

    def test_a_stream_resumes_from_the_cursor_of_subscribed_and_of_synced(self):
        self.create(1)
        with self.mine(snapshot=True) as observer:
            observer.next()
            synced = observer.until("synced").cursor
        with self.mine() as observer:
            subscribed = observer.next().cursor
        self.create(2)
        for cursor in (synced, subscribed):
            with self.mine(cursor=cursor) as resumed:
                again = resumed.next().cursor
                self.assertTrue(again)
                self.assertEqual(resumed.events(1), [(CREATED, self.key, 2)])
            with self.mine(cursor=again) as resumed:
                resumed.next()
                self.assertEqual(resumed.events(1), [(CREATED, self.key, 2)])

    def test_the_cursor_before_a_snapshot_starts_with_the_snapshot_again(self):
        self.create(1, 2)
        with self.mine(snapshot=True) as observer:
            cursor = observer.next().cursor
        self.create(3)
        with self.mine(cursor=cursor) as resumed:
            resumed.held, resumed.in_snapshot = set(), True
            self.assertEqual(resumed.next().WhichOneof("body"), "subscribed")
            self.assertEqual(resumed.until("synced").synced.session_count, 3)
            self.assertEqual(resumed.held, {(self.key, 1), (self.key, 2), (self.key, 3)})

    def test_a_cursor_also_works_with_other_filters(self):
        with self.mine() as observer:
            cursor = observer.next().cursor
        self.create(1, 2)
        self.destroy(1, 2)
        with self.mine(cursor=cursor, session_ids=[2], types=[DESTROYED]) as resumed:
            self.assertEqual(resumed.events(1), [(DESTROYED, self.key, 2)])

    def test_a_malformed_cursor_is_an_error(self):
        with self.mine() as observer:
            good = observer.next().cursor
        for bad in ("", "no cursor", "0", good[:-1], good + "x", "x" + good, good.swapcase() + " ", "ü", "x" * 100_000):
            if bad == good:
                continue
            with self.subTest(bad[:40]):
                self.refused_stream("cursor", cursor=bad)

    def test_a_cursor_of_another_registry_leads_to_a_reset(self):
        with Server() as other, other.subscribe() as observer:
            foreign = observer.next()
        self.create(1, 2)
        with self.mine(cursor=foreign.cursor) as observer:
            self.assertNotEqual(observer.next().subscribed.registry_id, foreign.subscribed.registry_id)
            reset = observer.until("reset").reset
            self.assertEqual(reset.reason, pb.RESET_REASON_CURSOR_FOREIGN)
            self.assertEqual(observer.until("synced").synced.session_count, 2)
            self.assertEqual(observer.held, {(self.key, 1), (self.key, 2)})
            self.create(3)
            self.assertEqual(observer.events(1), [(CREATED, self.key, 3)])

    def test_an_expired_cursor_leads_to_a_reset(self):
        with Server("--retain-events", "1024") as server:
            with server.subscribe() as observer:
                old = observer.next().cursor
            server.sessions.BatchCreateSessions(pb.BatchCreateSessionsRequest(session_ids=range(MAX_BATCH)))
            server.sessions.BatchDestroySessions(pb.BatchDestroySessionsRequest(session_ids=range(10, MAX_BATCH)))
            with server.subscribe(cursor=old) as observer:
                observer.next()
                self.assertEqual(observer.until("reset").reset.reason, pb.RESET_REASON_CURSOR_EXPIRED)
                observer.until("synced")
                self.assertEqual(observer.held, {(0, id_) for id_ in range(10)})

    def test_a_session_must_match_every_filter(self):
        other = self.key ^ 1
        streams = {
            "by session": {"session_ids": [1, -1], "auth_key_ids": [self.key, other]},
            "by auth key": {"auth_key_ids": [other]},
            "by type": {"types": [DESTROYED], "auth_key_ids": [self.key, other]},
            "by all": {"session_ids": [1], "auth_key_ids": [self.key], "types": [CREATED]},
            "by none that match": {"session_ids": [99], "auth_key_ids": [self.key], "heartbeat": seconds(0.1)},
        }
        with contextlib.ExitStack() as stack:
            observers = {}
            for name, request in streams.items():
                observers[name] = stack.enter_context(self.server.subscribe(**request))
                observers[name].next()
            for key in (self.key, other):
                self.create(1, 2, -1, key=key)
            self.destroy(2, 1)
            everything = [(CREATED, key, id_) for key in (self.key, other) for id_ in (1, 2, -1)]
            everything += [(DESTROYED, self.key, 2), (DESTROYED, self.key, 1)]
            passes = {
                "by session": lambda type_, key, id_: id_ in (1, -1),
                "by auth key": lambda type_, key, id_: key == other,
                "by type": lambda type_, key, id_: type_ == DESTROYED,
                "by all": lambda type_, key, id_: (type_, key, id_) == (CREATED, self.key, 1),
            }
            for name, passing in passes.items():
                with self.subTest(name):
                    expected = [event for event in everything if passing(*event)]
                    self.assertEqual(observers[name].events(len(expected)), expected)
            with self.subTest("nothing passes: heartbeats alone"):
                self.assertEqual(observers["by none that match"].next().WhichOneof("body"), "heartbeat")

    def test_filters_apply_to_snapshots(self):
        self.create(1, 2, 3)
        with self.mine(snapshot=True, session_ids=[1, 3, 4]) as observer:
            observer.next()
            self.assertEqual(observer.until("synced").synced.session_count, 2)
            self.assertEqual(observer.held, {(self.key, 1), (self.key, 3)})

    def test_a_type_filter_does_not_narrow_snapshots(self):
        self.create(1, 2)
        with self.mine(snapshot=True, types=[DESTROYED]) as observer:
            observer.next()
            self.assertEqual(observer.until("synced").synced.session_count, 2)
            self.create(3)
            self.destroy(3)
            self.assertEqual(observer.events(1), [(DESTROYED, self.key, 3)])

    def test_an_unknown_event_type_is_an_error(self):
        for types in ([99], [CREATED, 0]):
            with self.subTest(types):
                self.refused_stream("types", types=types)

    def test_heartbeats_come_at_the_requested_interval_and_carry_a_cursor(self):
        with self.mine(heartbeat=seconds(0.1)) as observer:
            self.assertEqual(observer.next().subscribed.heartbeat, seconds(0.1))
            begun = time.monotonic()
            for _ in range(3):
                self.assertEqual(observer.next().WhichOneof("body"), "heartbeat")
            self.assertGreater(time.monotonic() - begun, 0.25, "heartbeats are faster than requested")
            cursor = observer.cursor
            self.create(1)
            self.assertEqual(observer.events(1), [(CREATED, self.key, 1)])
        with self.mine(cursor=cursor) as resumed:
            resumed.next()
            self.assertEqual(resumed.events(1), [(CREATED, self.key, 1)])

    def test_the_cursor_moves_past_what_filters_hide(self):
        with self.mine(heartbeat=seconds(0.1)) as observer:
            observer.next()
            self.create(*range(100), key=self.key ^ 1)
            observer.next()
            cursor = observer.until("heartbeat").cursor
        # Resume without the filter: the cursor is after the hidden events.
        with self.server.subscribe(cursor=cursor, auth_key_ids=[self.key, self.key ^ 1]) as resumed:
            resumed.next()
            self.create(1)
            self.assertEqual(resumed.events(1), [(CREATED, self.key, 1)])

    def test_heartbeat_intervals_out_of_bounds_are_refused(self):
        bad = {
            "too short": seconds(0.05), "zero": seconds(0), "negative": seconds(-1), "too long": seconds(3601),
            "mixed signs": duration_pb2.Duration(seconds=1, nanos=-1),
            "nanos out of range": duration_pb2.Duration(seconds=1, nanos=2_000_000_000),
            "endless": duration_pb2.Duration(seconds=INT64_MAX, nanos=999_999_999),
        }
        for name, heartbeat in bad.items():
            with self.subTest(name):
                self.refused_stream("heartbeat", heartbeat=heartbeat)
        for heartbeat in (seconds(0.1), seconds(3600)):
            with self.subTest(str(heartbeat)), self.mine(heartbeat=heartbeat) as observer:
                self.assertEqual(observer.next().subscribed.heartbeat, heartbeat)

    def test_a_deadline_ends_a_stream(self):
        call = self.sessions.Subscribe(pb.SubscribeRequest(auth_key_ids=[self.key]), timeout=0.5)
        self.assertEqual(next(call).WhichOneof("body"), "subscribed")
        with self.assertRaises(grpc.RpcError) as caught:
            next(call)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_cancelling_a_stream_does_not_affect_others(self):
        with self.mine() as stays:
            stays.next()
            with self.mine() as goes:
                goes.next()
            self.create(1)
            self.assertEqual(stays.events(1), [(CREATED, self.key, 1)])

    def test_many_observers_share_one_connection(self):
        with contextlib.ExitStack() as stack:
            observers = [stack.enter_context(self.mine()) for _ in range(50)]
            for observer in observers:
                observer.next()
            self.create(*range(100))
            for observer in observers:
                self.assertEqual(observer.events(100), [(CREATED, self.key, id_) for id_ in range(100)])


class Leases(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.leases = lease_grpc.LeaseServiceStub(cls.server.channel)

    def grant(self, ttl):
        return self.leases.GrantLease(lease_pb.GrantLeaseRequest(ttl=seconds(ttl), owner="interop"))

    def test_an_expired_lease_destroys_its_sessions(self):
        granted = self.grant(1)
        self.assertEqual(granted.ttl, seconds(1))
        begun = time.monotonic()
        with self.mine() as observer:
            observer.next()
            self.create(1, lease_id=granted.lease_id)
            self.assertEqual(observer.events(1), [(CREATED, self.key, 1)])
            (event,) = observer.until("events").events.events
            lasted = time.monotonic() - begun
            self.assertEqual((event.type, event.reason), (DESTROYED, pb.DESTROY_REASON_LEASE_EXPIRED))
            self.assertGreaterEqual(lasted, 0.95)
        self.assertEqual(self.has(1), [False])
        with self.refused(grpc.StatusCode.NOT_FOUND):
            self.leases.KeepLeaseAlive(lease_pb.KeepLeaseAliveRequest(lease_id=granted.lease_id))

    def test_a_lease_that_is_kept_alive_does_not_expire(self):
        lease = self.grant(1).lease_id
        self.create(1, lease_id=lease)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            kept = self.leases.KeepLeaseAlive(lease_pb.KeepLeaseAliveRequest(lease_id=lease))
            self.assertEqual(kept.ttl, seconds(1))
            self.assertEqual(self.has(1), [True])
            time.sleep(0.2)

    def test_revoking_a_lease_destroys_its_sessions(self):
        lease = self.grant(60).lease_id
        with self.mine() as observer:
            observer.next()
            self.create(1, 2, lease_id=lease)
            observer.events(2)
            revoked = self.leases.RevokeLease(lease_pb.RevokeLeaseRequest(lease_id=lease))
            self.assertEqual(revoked.sessions_destroyed, 2)
            events = []
            while len(events) < 2:
                events += observer.until("events").events.events
            self.assertEqual({event.session_id for event in events}, {1, 2})
            self.assertEqual({event.reason for event in events}, {pb.DESTROY_REASON_LEASE_REVOKED})
        with self.refused(grpc.StatusCode.NOT_FOUND):
            self.leases.RevokeLease(lease_pb.RevokeLeaseRequest(lease_id=lease))

    def test_a_destroy_under_another_lease_does_nothing(self):
        self.create(1)
        self.assertEqual(self.destroy(1, lease_id=self.grant(60).lease_id), [False])
        self.assertEqual(self.destroy(1, lease_id=0xDEAD_BEEF_DEAD_BEEF), [False])
        self.assertEqual(self.has(1), [True])

    def test_a_session_moves_between_leases(self):
        old, new = self.grant(60).lease_id, self.grant(60).lease_id
        self.assertEqual(self.create(1, lease_id=old), [True])
        self.assertEqual(self.create(1, lease_id=new), [False])
        self.assertEqual(self.destroy(1, lease_id=old), [False])
        self.assertEqual(self.create(1), [False])  # without a lease, the session keeps the new one
        self.assertEqual(self.leases.RevokeLease(lease_pb.RevokeLeaseRequest(lease_id=old)).sessions_destroyed, 0)
        self.assertEqual(self.has(1), [True])
        self.assertEqual(self.destroy(1, lease_id=new), [True])

    def test_invalid_ttls_and_owners_are_refused(self):
        for ttl in (0, 0.5, -1, 24 * 3600 + 1):
            with self.subTest(ttl=ttl), self.refused(grpc.StatusCode.INVALID_ARGUMENT, "ttl"):
                self.grant(ttl)
        with self.refused(grpc.StatusCode.INVALID_ARGUMENT, "owner"):
            self.leases.GrantLease(lease_pb.GrantLeaseRequest(ttl=seconds(60), owner="x" * 129))


class Placements(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.leases = lease_grpc.LeaseServiceStub(cls.server.channel)

    def grant(self, owner):
        return self.leases.GrantLease(lease_pb.GrantLeaseRequest(ttl=seconds(60), owner=owner)).lease_id

    def lookup(self, id_):
        found = self.sessions.LookupSession(pb.LookupSessionRequest(auth_key_id=self.key, session_id=id_))
        return found.exists, found.lease.lease_id, found.lease.owner

    def take(self, id_, lease, only_from):
        request = pb.CreateSessionRequest(
            auth_key_id=self.key, session_id=id_, lease_id=lease, only_from_lease_id=only_from, with_place=True
        )
        return self.sessions.CreateSession(request)

    def test_lookups_return_the_lease_and_its_owner(self):
        lease = self.grant("10.0.0.1:443")
        self.create(1, lease_id=lease)
        self.create(2)
        self.assertEqual(self.lookup(1), (True, lease, "10.0.0.1:443"))
        self.assertEqual(self.lookup(2), (True, 0, ""))
        self.assertEqual(self.lookup(3), (False, 0, ""))
        request = pb.BatchLookupSessionsRequest(auth_key_ids=[self.key] * 3, session_ids=[3, 1, 2])
        found = self.sessions.BatchLookupSessions(request)
        self.assertEqual((list(found.exists), list(found.lease_ids)), ([False, True, True], [0, lease, 0]))

    def test_a_takeover_is_a_compare_and_set(self):
        a, b, c = self.grant("a"), self.grant("b"), self.grant("c")
        self.assertTrue(self.take(1, a, 0).created)
        stays = self.take(1, b, 0)
        self.assertEqual((stays.created, stays.lease.lease_id, stays.lease.owner), (False, a, "a"))
        moves = self.take(1, b, a)
        self.assertFalse(moves.created or moves.HasField("lease"))
        self.assertGreater(moves.place.position, stays.place.position)
        self.assertEqual(self.take(1, c, a).lease.owner, "b")
        with self.refused(grpc.StatusCode.INVALID_ARGUMENT, "lease_id"):
            self.take(1, 0, a)

    def test_streams_with_placements_report_leases_and_moves(self):
        a, b = self.grant("a"), self.grant("b")
        self.create(1, lease_id=a)
        self.create(2)
        with self.mine(snapshot=True, placements=True) as every, self.mine(snapshot=True, lease_ids=[a]) as own:
            for observer, count in ((every, 2), (own, 1)):
                self.assertEqual(len(observer.next().subscribed.places), 1)
                held, synced = {}, None
                while synced is None:
                    message = observer.next()
                    # A snapshot may come in several parts.
                    held.update({s.session_id: s.lease_id for s in message.snapshot.sessions})
                    synced = message.synced if message.HasField("synced") else None
                self.assertEqual(held[1], a)
                self.assertEqual(synced.session_count, count)
            self.take(1, b, a)
            for observer in (every, own):
                events = observer.until("events").events
                (event,) = events.events
                self.assertEqual(event.type, pb.SESSION_EVENT_TYPE_MOVED)
                self.assertEqual((event.previous_lease_id, event.lease_id), (a, b))
                self.assertGreater(events.place.position, 0)

    def test_a_lease_lingers_and_is_listed(self):
        lease, taker = self.grant("lingers"), self.grant("taker")
        self.create(1, 2, lease_id=lease)
        self.leases.RevokeLease(lease_pb.RevokeLeaseRequest(lease_id=lease, linger=seconds(60)))
        (status,) = self.leases.ListLeases(lease_pb.ListLeasesRequest(owner="lingers")).leases
        self.assertEqual((status.lease.lease_id, status.session_count, status.lingers), (lease, 2, True))
        with self.refused(grpc.StatusCode.FAILED_PRECONDITION):
            self.leases.KeepLeaseAlive(lease_pb.KeepLeaseAliveRequest(lease_id=lease))
        self.assertFalse(self.take(1, taker, 0).HasField("lease"))
        revoked = self.leases.RevokeLease(lease_pb.RevokeLeaseRequest(lease_id=lease))
        self.assertEqual(revoked.sessions_destroyed, 1)
        self.assertEqual(self.lookup(1), (True, taker, "taker"))


class StandardServices(Case):
    def test_health_is_reported(self):
        for service in ("", "sessiond.v1.SessionService"):
            response = self.server.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
            self.assertEqual(response.status, health_pb2.HealthCheckResponse.SERVING, service)
        with self.assertRaises(grpc.RpcError) as caught:
            self.server.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def reflect(self, version, **request):
        # The messages of v1 and v1alpha differ only in their package.
        call = self.server.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        return next(call(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=DEADLINE))

    def test_reflection_describes_the_services(self):
        for version in ("v1", "v1alpha"):
            with self.subTest(version):
                listed = self.reflect(version, list_services="").list_services_response.service
                names = {service.name for service in listed}
                self.assertLessEqual({"sessiond.v1.SessionService", "grpc.health.v1.Health"}, names)
                answer = self.reflect(version, file_containing_symbol="sessiond.v1.SessionService")
                files = answer.file_descriptor_response.file_descriptor_proto
                self.assertTrue(any(b"BatchCreateSessions" in file for file in files))
                answer = self.reflect(version, file_by_filename="google/protobuf/duration.proto")
                self.assertTrue(answer.file_descriptor_response.file_descriptor_proto)

    def test_error_details_can_be_decoded_through_reflection(self):
        # As grpcurl does.
        database = proto_reflection_descriptor_database.ProtoReflectionDescriptorDatabase(self.server.channel)
        pool = descriptor_pool.DescriptorPool(database)
        with self.assertRaises(grpc.RpcError) as caught:
            self.sessions.HasSession(pb.HasSessionRequest(), timeout=DEADLINE)
        shown = {}
        for packed in rpc_status.from_call(caught.exception).details:
            name = packed.type_url.rpartition("/")[2]
            message = message_factory.GetMessageClass(pool.FindMessageTypeByName(name)).FromString(packed.value)
            shown |= json_format.MessageToDict(message)
        self.assertEqual(shown["reason"], "SESSION_ID_MISSING")
        self.assertEqual(shown["fieldViolations"][0]["field"], "session_id")

    def test_the_admin_port_answers(self):
        address = self.server.admin_address
        self.create(1)
        for path, status in (("live", 200), ("ready", 200), ("metrics", 200), ("no-such-page", 404)):
            self.assertEqual(http_status(f"http://{address}/{path}"), status, path)
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE) as response:
            self.assertRegex(response.read().decode(), re.compile(r"^sessiond_sessions [1-9]", re.MULTILINE))


class Drain(Case):
    """Each test stops a server, so each has its own."""

    def setUp(self):
        super().setUp()
        self.server = Server()
        self.addCleanup(self.server.__exit__)
        self.sessions = self.server.sessions

    def check_drain(self, observer):
        """Checks how a drain ends this observer's stream. Returns the last message and the retry delay in nanoseconds."""
        last, error = observer.end()
        self.assertIsNotNone(last, "the stream ended without a last message")
        self.assertEqual(last.WhichOneof("body"), "heartbeat")
        self.assertTrue(last.cursor)
        details = self.check_error(error, grpc.StatusCode.UNAVAILABLE)
        self.assertIn("RetryInfo", details)
        self.assertGreater(details["RetryInfo"].retry_delay.ToNanoseconds(), 0)
        return last, details["RetryInfo"].retry_delay.ToNanoseconds()

    def churn(self, server):
        """Yields calls that cause many events."""
        ids = range(MAX_BATCH)
        yield server.sessions.BatchCreateSessions, pb.BatchCreateSessionsRequest(session_ids=ids)
        yield server.sessions.BatchDestroySessions, pb.BatchDestroySessionsRequest(session_ids=ids)

    def test_sigterm_drains(self):
        observers = [self.mine() for _ in range(10)]
        for observer in observers:
            observer.next()
        self.create(1)
        for observer in observers:
            self.assertEqual(observer.events(1), [(CREATED, self.key, 1)])
        begun = time.monotonic()
        self.server.terminate()
        ends = [self.check_drain(observer) for observer in observers]
        self.assertEqual(self.server.exit_code(11), 0)
        self.assertLess(time.monotonic() - begun, 11)
        self.assertEqual({last.cursor for last, _ in ends}, {ends[0][0].cursor}, "the cursors differ at the same place")
        self.assertGreater(len({delay for _, delay in ends}), 1, "all observers would reconnect at the same time")

    def test_the_last_cursor_of_a_lost_registry_leads_to_a_reset_in_a_new_one(self):
        with self.mine() as observer:
            observer.next()
            self.server.terminate()
            last, _ = self.check_drain(observer)
        self.assertEqual(self.server.exit_code(11), 0)
        with Server() as server, server.subscribe(cursor=last.cursor) as observer:
            observer.next()
            self.assertEqual(observer.until("reset").reset.reason, pb.RESET_REASON_CURSOR_FOREIGN)
            self.assertEqual(observer.until("synced").synced.session_count, 0)

    def test_health_watches_report_the_drain(self):
        watch = self.server.health.Watch(health_pb2.HealthCheckRequest(service=""), timeout=DEADLINE)
        self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.SERVING)
        self.server.terminate()
        with contextlib.suppress(grpc.RpcError):
            self.assertEqual(next(watch).status, health_pb2.HealthCheckResponse.NOT_SERVING)
        self.assertEqual(self.server.exit_code(11), 0)

    def test_a_drain_ends_at_its_timeout_although_an_observer_is_stuck(self):
        with Server("--drain-timeout", "2s") as server:
            # This observer reads nothing, so its flow-control window is full when the drain starts.
            stuck = server.sessions.Subscribe(pb.SubscribeRequest())
            self.addCleanup(stuck.cancel)
            next(stuck)
            for _ in range(10):
                for call, request in self.churn(server):
                    call(request)
            ready = f"http://{server.admin_address}/ready"
            self.assertEqual(http_status(ready), 200)
            server.terminate()
            begun = time.monotonic()
            while http_status(ready) == 200:
                self.assertLess(time.monotonic() - begun, 2, "a draining server is still ready")
            self.assertEqual(server.exit_code(5), 0)

    def test_sigint_drains(self):
        with self.mine() as observer:
            observer.next()
            self.server.process.send_signal(signal.SIGINT)
            self.check_drain(observer)
        self.assertEqual(self.server.exit_code(11), 0)

    def test_a_second_signal_exits_immediately(self):
        with Server("--drain-timeout", "120s") as server:
            # The drain has to wait for a silent connection and for an observer that reads nothing.
            host, _, port = server.address.rpartition(":")
            silent = socket.create_connection((host, int(port)))
            self.addCleanup(silent.close)
            stuck = server.sessions.Subscribe(pb.SubscribeRequest())
            self.addCleanup(stuck.cancel)
            next(stuck)
            for _ in range(10):
                for call, request in self.churn(server):
                    call(request)
            watch = server.health.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
            next(watch)
            server.terminate()
            with contextlib.suppress(grpc.RpcError):
                next(watch)  # the drain has started
            server.terminate()
            server.exit_code(5)


class Access(unittest.TestCase):
    """TLS, client certificates and tokens, each through gRPC's own API."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="sessiond-interop-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(self.folder / "ca.crt")
        server = self.authority.issue_cert("127.0.0.1")
        server.cert_chain_pems[0].write_to_path(self.folder / "server.crt")
        server.private_key_pem.write_to_path(self.folder / "server.key")
        self.list = self.folder / "access"

    def start(self, *flags):
        tls = ("--tls-cert", self.folder / "server.crt", "--tls-key", self.folder / "server.key")
        server = Server(*tls, *flags)
        self.addCleanup(server.__exit__)
        return server

    def secure(self, server, authority=None, certificate=None, token=None):
        """Returns a stub with a new connection that trusts this authority and uses these credentials."""
        credentials = grpc.ssl_channel_credentials(
            (authority or self.authority).cert_pem.bytes(),
            certificate and certificate.private_key_pem.bytes(),
            certificate and certificate.cert_chain_pems[0].bytes(),
        )
        if token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
        channel = grpc.secure_channel(server.address, credentials, [("grpc.use_local_subchannel_pool", 1)])
        self.addCleanup(channel.close)
        return pb_grpc.SessionServiceStub(channel)

    def refused(self, code, call, request):
        with self.assertRaises(grpc.RpcError) as caught:
            call(request, timeout=DEADLINE)
        self.assertEqual(caught.exception.code(), code, caught.exception.details())

    def new_token(self, name, scopes):
        """Makes a token. Returns it and its line for the access file."""
        command = [BINARY, "token", "new", "--name", name, "--scopes", scopes]
        token, line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        return token, line

    def test_tls_is_required_and_the_certificate_is_verified(self):
        server = self.start()
        sessions = self.secure(server)
        with Observer(sessions, pb.SubscribeRequest()) as observer:
            observer.next()
            self.assertTrue(sessions.CreateSession(pb.CreateSessionRequest(session_id=1), timeout=DEADLINE).created)
            self.assertEqual(observer.events(1), [(CREATED, 0, 1)])
        request = pb.HasSessionRequest(session_id=1)
        self.refused(grpc.StatusCode.UNAVAILABLE, self.secure(server, trustme.CA()).HasSession, request)
        self.refused(grpc.StatusCode.UNAVAILABLE, server.sessions.HasSession, request)

    def test_client_certificates_are_required_and_have_scopes(self):
        self.list.write_text("certificate gateway.fleet.example read\n")
        server = self.start("--tls-client-ca", self.folder / "ca.crt", "--access-file", self.list)
        has, create = pb.HasSessionRequest(session_id=1), pb.CreateSessionRequest(session_id=1)
        gateway = self.secure(server, certificate=self.authority.issue_cert("gateway.fleet.example"))
        self.assertFalse(gateway.HasSession(has, timeout=DEADLINE).exists)
        self.refused(grpc.StatusCode.PERMISSION_DENIED, gateway.CreateSession, create)
        stranger = self.secure(server, certificate=self.authority.issue_cert("other.fleet.example"))
        self.refused(grpc.StatusCode.PERMISSION_DENIED, stranger.HasSession, has)
        foreign = self.secure(server, certificate=trustme.CA().issue_cert("gateway.fleet.example"))
        self.refused(grpc.StatusCode.UNAVAILABLE, foreign.HasSession, has)
        self.refused(grpc.StatusCode.UNAVAILABLE, self.secure(server).HasSession, has)

    def test_tokens_have_scopes_and_can_be_withdrawn(self):
        (gateway, its_line), (dashboard, other_line) = self.new_token("g", "read,write"), self.new_token("d", "observe")
        self.list.write_text(f"{its_line}\n{other_line}\n")
        server = self.start("--access-file", self.list)
        create = pb.CreateSessionRequest(session_id=1)
        with Observer(self.secure(server, token=dashboard), pb.SubscribeRequest()) as observer:
            observer.next()
            sessions = self.secure(server, token=gateway)
            self.assertTrue(sessions.CreateSession(create, timeout=DEADLINE).created)
            self.assertEqual(observer.events(1), [(CREATED, 0, 1)])
            self.refused(grpc.StatusCode.PERMISSION_DENIED, self.secure(server, token=dashboard).CreateSession, create)
            self.refused(grpc.StatusCode.UNAUTHENTICATED, self.secure(server, token="wrong").CreateSession, create)
            self.refused(grpc.StatusCode.UNAUTHENTICATED, self.secure(server).CreateSession, create)
            self.list.write_text(f"{its_line}\n")
            _, error = observer.end()
            self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED)
            self.assertFalse(sessions.CreateSession(create, timeout=DEADLINE).created)


class Restarts(unittest.TestCase):
    """Restarts of servers under load, with the README's service config."""

    def setUp(self):
        self.answered, self.errors, self.over = 0, [], threading.Event()

    def call(self, sessions):
        while not self.over.is_set():
            try:
                sessions.CreateSession(pb.CreateSessionRequest(session_id=random.randint(0, 99)), timeout=10)
                sessions.HasSession(pb.HasSessionRequest(session_id=random.randint(0, 99)), timeout=10)
                self.answered += 2
            except grpc.RpcError as error:
                self.errors.append(error)
            time.sleep(0.002)  # leaves enough of the machine to the servers

    def wait_for_answers(self):
        end, until = time.monotonic() + DEADLINE, self.answered + 200
        while self.answered < until and not self.errors:
            self.assertLess(time.monotonic(), end, "no call is answered")
            time.sleep(0.01)

    def restart(self, count):
        # Loopback addresses whose ports no client takes as a local port while a server is down.
        servers = [Server(listen=f"127.{random.randint(1, 254)}.{n}.1:0") for n in range(count)]
        for server in servers:
            self.addCleanup(lambda n: servers[n].__exit__(), servers.index(server))
        addresses = ",".join(server.address for server in servers)
        # For a list of addresses, gRPC makes an authority that is invalid in HTTP. A DNS name of all replicas needs no
        # such option.
        options = [("grpc.service_config", SERVICE_CONFIG), ("grpc.default_authority", "sessiond")]
        with grpc.insecure_channel(f"ipv4:{addresses}", options) as channel:
            sessions = pb_grpc.SessionServiceStub(channel)
            callers = [threading.Thread(target=self.call, args=[sessions]) for _ in range(4)]
            for caller in callers:
                caller.start()
            try:
                for n, server in enumerate(servers):
                    self.wait_for_answers()
                    server.terminate()
                    self.assertEqual(server.exit_code(11), 0)
                    if count > 1:
                        self.wait_for_answers()
                    server.__exit__()
                    servers[n] = Server(listen=server.address)
                self.wait_for_answers()
            finally:
                self.over.set()
                for caller in callers:
                    caller.join()
        self.assertEqual(self.errors, [])

    def test_a_rolling_restart_fails_no_call(self):
        self.restart(3)

    def test_a_quick_restart_fails_no_call(self):
        self.restart(1)


class Retries(unittest.TestCase):
    """How gRPC's C core retries refused calls with the README's service config."""

    def start(self, *flags, config=SERVICE_CONFIG):
        server = Server(*flags)
        self.addCleanup(server.__exit__)
        channel = grpc.insecure_channel(server.address, [("grpc.service_config", config)] if config else [])
        self.addCleanup(channel.close)
        return server, pb_grpc.SessionServiceStub(channel)

    def refusals(self, server, reason):
        with urllib.request.urlopen(f"http://{server.admin_address}/metrics", timeout=DEADLINE) as response:
            line = re.search(rf'^sessiond_refused_total{{reason="{reason}"}} (\d+)$', response.read().decode(), re.MULTILINE)
        return int(line[1])

    def test_a_rate_limit_delays_calls_and_fails_none(self):
        server, sessions = self.start("--rate-limit", "5", "--rate-burst", "5")
        begun = time.monotonic()
        for id_ in range(15):
            self.assertTrue(sessions.CreateSession(pb.CreateSessionRequest(session_id=id_), timeout=10).created)
        self.assertGreater(time.monotonic() - begun, 1.9, "15 calls at 5 a second, with a burst of 5")
        # Calls are made one at a time, each is refused at most once, and its retry comes when it is allowed.
        self.assertLessEqual(self.refusals(server, "RATE_LIMITED"), 10)
        self.assertGreater(self.refusals(server, "RATE_LIMITED"), 0)

    def test_permanent_errors_are_not_retried(self):
        server, sessions = self.start("--max-message-bytes", "1024")
        with self.assertRaises(grpc.RpcError) as caught:
            sessions.BatchHasSessions(pb.BatchHasSessionsRequest(session_ids=range(1000)), timeout=10)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED)
        self.assertEqual(self.refusals(server, "REQUEST_TOO_LARGE"), 1)

    def test_an_observer_over_the_limit_is_retried_until_another_leaves(self):
        server, sessions = self.start("--max-observers", "1")
        first = server.subscribe()
        first.next()
        with Observer(sessions, pb.SubscribeRequest()) as second:
            end = time.monotonic() + DEADLINE
            while self.refusals(server, "TOO_MANY_OBSERVERS") == 0:
                self.assertLess(time.monotonic(), end)
                time.sleep(0.01)
            first.call.cancel()
            self.assertEqual(second.next().WhichOneof("body"), "subscribed")

    def test_no_call_fails_when_connections_reach_their_maximum_age(self):
        # Without retries: a GOAWAY must not fail a call.
        server, sessions = self.start("--max-connection-age", "1s", config=None)
        observer = Observer(sessions, pb.SubscribeRequest(snapshot=True))
        ended = threading.Event()
        threading.Thread(target=lambda: (observer.end(), ended.set()), daemon=True).start()
        begun = id_ = time.monotonic_ns()
        while time.monotonic_ns() - begun < 4e9:
            id_ += 1
            self.assertTrue(sessions.CreateSession(pb.CreateSessionRequest(session_id=id_), timeout=10).created)
        self.assertTrue(ended.wait(DEADLINE), "the stream outlives the maximum age of its connection")
        self.assertEqual(observer.error.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertIn("RetryInfo", details_of(observer.error))
        with Observer(sessions, pb.SubscribeRequest(cursor=observer.cursor)) as resumed:
            self.assertEqual(resumed.next().WhichOneof("body"), "subscribed")


class Outages(unittest.TestCase):
    """Outages of the server, for gateways with gRPC's default channel options: C core reconnects with a growing backoff.

    The last gateway has the options of docs/gateways.md instead."""

    OUTAGE, TTL, GATEWAYS = (75, 30, 6) if IS_LONG else (8, 2, 3)
    SESSIONS = 100

    def keep_alive(self, address, n):
        """Acts as a gateway: keeps its sessions under a lease until the test is over."""
        options = GATEWAY_OPTIONS if n == self.GATEWAYS - 1 else {}
        with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1), *options.items()]) as channel:
            leases = lease_grpc.LeaseServiceStub(channel)
            ttl = seconds(self.TTL)
            lease = leases.GrantLease(lease_pb.GrantLeaseRequest(ttl=ttl), timeout=self.TTL).lease_id
            ids = range(n * self.SESSIONS, (n + 1) * self.SESSIONS)
            request = pb.BatchCreateSessionsRequest(session_ids=ids, lease_id=lease)
            pb_grpc.SessionServiceStub(channel).BatchCreateSessions(request, timeout=self.TTL)
            while not self.over.wait(self.TTL / 3):
                try:
                    leases.KeepLeaseAlive(lease_pb.KeepLeaseAliveRequest(lease_id=lease), timeout=self.TTL / 3)
                    self.kept.setdefault(n, []).append(time.monotonic())
                except grpc.RpcError as error:
                    if error.code() == grpc.StatusCode.NOT_FOUND:
                        self.lost.append(n)
                        return

    def wait_for_keep_alives(self, since, timeout):
        """Waits until every gateway has lost its lease or kept it alive after the time since."""
        end = time.monotonic() + timeout
        while not all(self.first_kept(n, since) or n in self.lost for n in range(self.GATEWAYS)):
            self.assertLess(time.monotonic(), end, "some gateways are not back")
            time.sleep(0.05)

    def first_kept(self, n, since):
        return next((kept for kept in self.kept.get(n, []) if kept > since), None)

    def test_an_outage_loses_no_session_of_gateways_with_default_options(self):
        self.kept, self.lost, self.over = {}, [], threading.Event()
        folder = tempfile.TemporaryDirectory(prefix="sessiond-interop-")
        self.addCleanup(folder.cleanup)
        storage = f"file:{folder.name}/registry"
        # A loopback address whose ports no client takes as a local port while the server is down.
        server = Server(listen=f"127.{random.randint(1, 254)}.0.1:0", storage=storage)
        gateways = [threading.Thread(target=self.keep_alive, args=[server.address, n]) for n in range(self.GATEWAYS)]
        try:
            for gateway in gateways:
                gateway.start()
            self.wait_for_keep_alives(0, DEADLINE)
            server.kill()
            time.sleep(self.OUTAGE)
            server = Server(listen=server.address, storage=storage)
            back = time.monotonic()
            self.wait_for_keep_alives(back, 130)
            late = [(self.first_kept(n, back) or math.inf) - back for n in range(self.GATEWAYS)]
            print(f"\nafter an outage of {self.OUTAGE} s, gateways were back after {', '.join(f'{s:.1f}' for s in late)} s")
            ids = range(self.GATEWAYS * self.SESSIONS)
            exists = server.sessions.BatchHasSessions(pb.BatchHasSessionsRequest(session_ids=ids), timeout=10).exists
        finally:
            self.over.set()
            for gateway in gateways:
                gateway.join()
            server.__exit__()
        self.assertEqual(self.lost, [], "gateways that lost their lease")
        longest = GATEWAY_OPTIONS["grpc.max_reconnect_backoff_ms"] / 1000 * 1.2  # with C core's jitter
        self.assertLess(late[-1], longest + self.TTL / 3 + 2, "a gateway with the options of docs/gateways.md is back late")
        self.assertEqual(list(exists), [True] * len(ids))


if __name__ == "__main__":
    if len(sys.argv) < 2 or not os.access(sys.argv[1], os.X_OK):
        sys.exit(f"usage: {sys.argv[0]} PATH-OF-SESSIOND [unittest's arguments]")
    BINARY = sys.argv.pop(1)
    unittest.main(verbosity=1)
