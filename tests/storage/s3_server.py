"""A real S3 server on loopback, which can fail in the ways that stores and networks do."""

import importlib
import threading
import uuid
from contextlib import contextmanager

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "3",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


class Store:
    """moto's server behind a gate that sees every request, one at a time.

    Args:
        app: moto's WSGI application.
    """

    def __init__(self, app):
        self.app, self.address, self.client = app, "", None
        self.seen: list[str] = []
        self.fault = None  # given (method, path, environ): None, or what is called instead

    def __call__(self, environ, start_response):
        self.seen.append(environ["REQUEST_METHOD"])
        answer = self.fault and self.fault(environ)
        return (answer or self.app)(environ, start_response)

    @contextmanager
    def failing(self, method, times, answer):
        """Answer the first so many requests of a method otherwise."""
        left = [times]

        def fault(environ):
            if environ["REQUEST_METHOD"] != method or not left[0]:
                return None
            left[0] -= 1
            return answer

        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def after(self, answer):
        """Do what is asked, then answer otherwise: the writer does not learn that it was done."""

        def act(environ, start_response):
            list(self.app(environ, lambda *args, **options: None))
            environ["CONTENT_LENGTH"] = 0  # it was read
            return answer(environ, start_response)

        return act


def refusal(status, code):
    """Return an application that answers with this error."""

    def answer(environ, start_response):
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>told to fail</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(status, headers)
        return [body]

    return answer


busy = refusal("503 Slow Down", "SlowDown")
conflict = refusal("409 Conflict", "ConditionalRequestConflict")


def reset(environ, start_response):
    """Close the connection without an answer."""
    raise ConnectionError


@contextmanager
def serve():
    """Run a server in a thread; skips the test where its packages are not installed."""
    reason = "boto3 and moto[s3], flask, flask-cors are not installed (the dev extra)"
    for name in ("boto3", "flask", "flask_cors"):
        pytest.importorskip(name, reason=reason)
    server = pytest.importorskip("moto.server", reason=reason)
    serving = pytest.importorskip("werkzeug.serving", reason=reason)

    class Quiet(serving.WSGIRequestHandler):
        def log(self, *args):
            pass

    application = server.DomainDispatcherApplication(server.create_backend_app)
    store = Store(application)
    # One request at a time: moto itself does not check and write in one step.
    http = serving.make_server("127.0.0.1", 0, store, request_handler=Quiet)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    store.address = f"http://127.0.0.1:{http.server_port}"
    store.client = importlib.import_module("boto3").client(
        "s3",
        endpoint_url=store.address,
        region_name=ENVIRONMENT["AWS_REGION"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    try:
        yield store
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def make_bucket(store, monkeypatch):
    """Point the environment at the server; return the name of a new bucket."""
    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL_S3": store.address}).items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid.uuid4().hex[:8]}"
    store.client.create_bucket(Bucket=bucket)
    return bucket
