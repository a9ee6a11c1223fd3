"""Generates the gRPC stubs into a temporary folder when imported, and offers them.

They come from proto/, or from the folder that SESSIOND_TEST_PROTOS names.
"""

import atexit
import importlib
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTOS = ROOT / os.environ.get("SESSIOND_TEST_PROTOS", "proto")


def _generate():
    folder = tempfile.TemporaryDirectory(prefix="sessiond-stubs-")
    atexit.register(folder.cleanup)
    protos = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    out = [f"--python_out={folder.name}", f"--grpc_python_out={folder.name}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *out, *protos], check=True)
    sys.path.insert(0, folder.name)
    return folder.name


FOLDER = _generate()
pb = importlib.import_module("sessiond.v1.session_service_pb2")
pb_grpc = importlib.import_module("sessiond.v1.session_service_pb2_grpc")
lease_pb = importlib.import_module("sessiond.v1.lease_service_pb2")
lease_grpc = importlib.import_module("sessiond.v1.lease_service_pb2_grpc")
