"""moto's S3 server as a process on loopback, with packages of its own (.venv/servers)."""

import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx

ROOT = Path(__file__).parent.parent
# What a developer's own environment may say of stores.
VARIABLES = ("AWS_", "S3_", "STORAGE_", "GOOGLE_", "AZURE_", "CA_BUNDLE_", "NO_GCE_CHECK", "awsAnonymousCredential")


class S3:
    """`environ` names the server and a key for it."""

    def __init__(self, port: int, authority: Path | None = None) -> None:
        self.host = f"localhost:{port}"
        self.url = f"http{'s' if authority else ''}://{self.host}"
        context = ssl.create_default_context(cafile=authority)
        # moto does not look at signatures, but tells who gives one from who gives none
        scope = "20261124/us-east-1/s3/aws4_request"
        signed = {"Authorization": f"AWS4-HMAC-SHA256 Credential=AKIAtest/{scope}, SignedHeaders=host, Signature=0"}
        self.http = httpx.Client(base_url=self.url, headers=signed, verify=context, trust_env=False)
        keys = {"AWS_ACCESS_KEY_ID": "AKIAtest", "AWS_SECRET_ACCESS_KEY": "canary-of-a-secret"}
        self.environ = {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1", **keys}

    def put(self, bucket: str, objects: dict[str, bytes], **headers: str) -> None:
        """Objects into a bucket, which is made where it is not there."""
        if self.http.head(f"/{bucket}").status_code == 404:
            self.http.put(f"/{bucket}", headers=headers).raise_for_status()
        for key, content in objects.items():
            self.http.put(f"/{bucket}/{quote(key)}", content=content, headers=headers).raise_for_status()

    def refuse_strangers(self, refuse: bool) -> None:
        """Whether a key that nobody made is refused from now on."""
        self.http.post("/moto-api/reset-auth", content=b"0" if refuse else b"inf").raise_for_status()

    def is_up(self) -> bool:
        try:
            return self.http.get("/moto-api/").status_code < 500
        except httpx.HTTPError:
            return False


@contextmanager
def running(folder: Path, certificate: Path | None = None, authority: Path | None = None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    if certificate:
        command += ["-c", str(certificate), "-k", str(certificate)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLES)}
    log = folder / f"moto-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environ | {"PYTHONPATH": str(ROOT / ".venv" / "servers")}, stdout=file, stderr=file, cwd=folder
        )
    try:
        store = S3(port, authority)
        end = time.monotonic() + 60
        while not store.is_up():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, "moto did not answer in 60 s"
            time.sleep(0.05)
        yield store
    finally:
        process.terminate()
        process.wait(10)
