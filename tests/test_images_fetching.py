"""What URLs may reach, and what they may not: other hosts, other files, more bytes, more time."""

import base64
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest

from jaxpool.images import fetching as module
from jaxpool.images.fetching import Fetching, read_url

NAME = "messages[0]"
LIMIT = 1000
LOCAL = "127.0.0.1"
INSIDE = ["10.0.0.1", "169.254.169.254", "127.0.0.1", "0.0.0.0", "100.64.0.1", "192.168.1.1", "224.0.0.1", "240.0.0.1"]
INSIDE += ["::1", "::", "fe80::1", "fe80::1%lo", "fd00::1", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::ffff:7f00:1"]
INSIDE += ["::10.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1", "2002:a00:1::", "2001:db8::1"]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def send(self, body=b"", status=200, **headers):
        self.send_response(status)
        for key, value in {"content_length": len(body), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(answer, tls=None):
    """A server of this machine; what it is asked is in `asked`."""
    server = Server((LOCAL, 0), Handler)
    server.answer, server.asked = answer, []
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.url = f"{'https' if tls else 'http'}://{LOCAL}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def allowing(*hosts, directory=None, limit=LIMIT, **options):
    return Fetching(frozenset(hosts), directory, limit, **options)


def refused(url, fetching, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_url(url, fetching, NAME)
    assert type(caught.value) is ValueError
    assert str(caught.value).startswith(f"{NAME}: ")
    return str(caught.value)


def not_allowed(url, fetching):
    assert refused(url, fetching, "not allowed") == f"{NAME}: this host is not allowed"


@pytest.fixture
def names(monkeypatch):
    """Host names and their addresses, and what was looked up; literal addresses are themselves."""
    real, known, asked = socket.getaddrinfo, {}, []

    def look_up(host, port, *arguments, **options):
        host = host.decode() if isinstance(host, bytes) else host
        asked.append(host)
        if host not in known:
            if not module._is_address(host):
                raise socket.gaierror(-2, "Name or service not known")
            return real(host, port, *arguments, **options)
        family = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in known[host]]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port or 80)) for f, a in zip(family, known[host], strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    look_up.known, look_up.asked = known, asked
    return look_up


@pytest.fixture
def connections(monkeypatch):
    """What is connected to; nothing is."""
    made = []

    def connect(self, host, port, *arguments):
        made.append((host, port))
        raise module.httpcore.ConnectError(f"no route to {host}")

    monkeypatch.setattr(module.httpcore.SyncBackend, "connect_tcp", connect)
    return made


# --- other schemes


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/a",
        "gopher://127.0.0.1/",
        "javascript:alert(1)",
        "/etc/passwd",
        "",
        "://",
        "iVBORw0KGgo" * 9000,
    ],
)
def test_other_schemes(url):
    assert len(refused(url, allowing("example.com"), "expected a URL")) < 200


# --- data:


@pytest.mark.parametrize("head", ["data:image/png;base64", "data:;base64", "DATA:image/png;charset=x;BASE64"])
@pytest.mark.parametrize("size", [0, 1, 2, 3, LIMIT - 1, LIMIT])
def test_data_in_base64(head, size):
    content = os.urandom(size)
    written = base64.b64encode(content).decode()
    assert read_url(f"{head},{written}", allowing(), NAME) == content
    assert read_url(f"{head},{quote(written, safe='')}", allowing(), NAME) == content


def test_data_percent_encoded():
    assert read_url("data:,a%20b+c,%00%ff", allowing(), NAME) == b"a b+c,\x00\xff"
    content = os.urandom(LIMIT)
    assert read_url("data:image/png," + quote(content, safe=""), allowing(), NAME) == content


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + 2, LIMIT + 3, 10 * LIMIT])
def test_data_that_is_too_long(size):
    content = bytes(size)
    refused("data:;base64," + base64.b64encode(content).decode(), allowing(), "more than the 1000 bytes")
    refused("data:," + quote(content), allowing(), "more than the 1000 bytes")
    refused("data:," + "a" * size, allowing(), "more than the 1000 bytes")


def test_long_data_is_not_decoded(monkeypatch):
    monkeypatch.setattr(base64, "b64decode", lambda *a, **k: pytest.fail("decoded"))
    monkeypatch.setattr(module, "unquote_to_bytes", lambda *a: pytest.fail("decoded"))
    refused("data:;base64," + "A" * 10_000, allowing(), "more than")
    refused("data:," + "%41" * 10_000, allowing(), "more than")


@pytest.mark.parametrize(
    "written",
    [
        "AAA",
        "AA=A",
        "A",
        "====",
        "AAAA=",
        "AAAA==",
        "AAAA====",
        "AAA=AAA=",
        "AA==AAAA",
        "AA AA",
        "AAAA\n",
        "AA-_",
        "AAAA%",
        "AA%4",
        "AAAé",
    ],
)
def test_broken_base64(written):
    refused(f"data:;base64,{written}", allowing(), "base64|percent-encoded")


@pytest.mark.parametrize("url", ["data:", "data:image/png;base64", "data:,%", "data:,%1", "data:,%zz", "data:,é"])
def test_broken_data(url):
    refused(url, allowing(), "comma|percent-encoded")


# --- file:


@pytest.fixture
def files(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a b.png").write_bytes(b"picture")
    (tmp_path / "open" / "large").write_bytes(bytes(LIMIT + 1))
    (tmp_path / "open-too").mkdir()
    (tmp_path / "open-too" / "secret").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "folder").symlink_to(tmp_path)
    (tmp_path / "open" / "inner").symlink_to("a b.png")
    (tmp_path / "open" / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "open" / "pipe")
    return tmp_path


def test_files(files):
    root = files / "open"
    for directory in (root, files / "open" / "folder" / "open", root / ".." / "open"):
        fetching = allowing(directory=directory)
        for url in (f"file://{root}/a%20b.png", f"file://localhost{root}/a%20b.png", f"FILE://{root}/inner"):
            assert read_url(url, fetching, NAME) == b"picture"
    refused(f"file://{root}/large", fetching, "more than the 1000 bytes")


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "%2e%2e/secret",
        "..%2fsecret",
        "link",
        "folder/secret",
        "folder/nothing",
        "../open-too/secret",
        "../nothing",
    ],
)
def test_files_elsewhere(files, path):
    # The same words whether they are there or not.
    text = refused(f"file://{files}/open/{path}", allowing(directory=files / "open"), "not in the directory")
    assert str(files) not in text


@pytest.mark.parametrize("path", ["nothing", "pipe", "", "circle", "a%00b", "a" * 5000])
def test_files_that_are_none(files, path):
    assert str(files) not in refused(
        f"file://{files}/open/{path}", allowing(directory=files / "open"), "no such file|cannot be read|not in"
    )


@pytest.mark.parametrize(
    "url", ["file:open/link", "file://open/link", "file:", "file://", "file://[/x", "file://x.com/etc"]
)
def test_file_urls_that_are_none(files, url, monkeypatch):
    monkeypatch.chdir(files)
    refused(url, allowing(directory=files / "open"), "absolute path|cannot be read|not in")


def test_no_files(files):
    refused(f"file://{files}/open/inner", allowing("localhost"), "file:// URLs are not allowed")


# --- which hosts


@pytest.mark.parametrize(
    "host", ["", "a/b", "http://a.com", "a.com:80", "u@a.com", "*", "*.", "*.*", "a*.com", "a..com", "a b"]
)
def test_hosts_that_are_none(host):
    with pytest.raises(ValueError, match="hosts: expected"):
        allowing(host)


def test_no_hosts(connections, names):
    refused("http://example.com/a", allowing(), r"http\(s\) URLs are not allowed here")
    assert not connections
    assert not names.asked


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("example.com", "http://example.com/a"),
        ("example.com", "https://EXAMPLE.com./a"),
        ("Example.COM.", "http://example.com:8080/a"),
        ("*.example.com", "http://a.example.com/a"),
        ("*.example.com", "http://b.a.example.com/a"),
        ("bücher.example", "http://xn--bcher-kva.example/a"),
        ("xn--bcher-kva.example", "http://Bücher.example/a"),
    ],
)
def test_hosts_that_are_listed(host, url, connections, names):
    looked = url.split("/")[2].split(":")[0].removesuffix(".").lower().encode("idna").decode()
    names.known[looked] = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]
    text = refused(url, allowing(host), "connection to its host failed")
    assert "93." not in text
    # Every address is tried, none is looked up again.
    port = 8080 if ":8080" in url else 443 if url.startswith("https") else 80
    assert connections == [(address, port) for address in names.known[looked]]
    assert names.asked == [looked]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://evil.com/?example.org",
        "http://example.org.evil.com/",
        "http://evilexample.org/",
        "http://example.org../",
        "http://.example.org/",
        "http:///a",
        "http:example.org/a",
        "http://%65xample.org/",
        "http://evil.com\\.example.org/",
        "http://evil.com#.example.org/",
        "http://0.0.0.1/",
        "http://[::1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://127。0。0。1/",
        "http://localhost/",
        "http://a.localhost/",
    ],
)
def test_hosts_that_are_not(url, connections, names):
    names.known.update({"a.localhost": [LOCAL], "localhost": [LOCAL]})
    not_allowed(url, allowing("example.org", "*.example.net", "*.0.0.1", "*.localhost"))
    assert not connections


@pytest.mark.parametrize(
    "url",
    [
        "http://[/",
        "http://a:b/",
        "http://example.com:99999/",
        "http://exa mple\x00.com/",
        "http://example.com/\n",
        "http://xn--/",
        "http://" + "a" * 70_000,
    ],
)
def test_broken_urls(url, connections):
    refused(url, allowing("example.com"), "the URL is broken|not allowed")
    assert not connections


@pytest.mark.parametrize("user", ["user:password", "user", ":password", "evil.com\\", "example.com%20"])
def test_passwords(user, connections, names):
    refused(f"http://{user}@example.com/", allowing("example.com"), "name or password")
    assert not connections


# --- addresses


@pytest.mark.parametrize("address", INSIDE)
def test_names_of_inner_addresses(address, connections, names):
    names.known["images.example.com"] = ["93.184.215.14", address]
    for host in ("images.example.com", "*.example.com"):
        not_allowed("http://images.example.com/latest/meta-data", allowing(host))
    assert not connections


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses(address):
    assert module._is_public(address)


def test_names_without_addresses(names, monkeypatch):
    refused("http://example.com/", allowing("example.com"), "no address")
    names.known["example.com"] = []
    refused("http://example.com/", allowing("example.com"), "no address")
    refused(f"http://{'a' * 64}.example.com/", allowing("*.example.com"), "no address|broken")


def test_addresses_that_are_listed(names):
    with serving(lambda handler: handler.send(b"picture")) as server:
        names.known["localhost"] = [LOCAL]
        assert read_url(server.url, allowing(LOCAL), NAME) == b"picture"
        assert read_url(server.url.replace(LOCAL, "localhost"), allowing("localhost"), NAME) == b"picture"
        not_allowed(server.url, allowing("localhost"))
        not_allowed(server.url.replace(LOCAL, "localhost"), allowing(LOCAL))


def test_a_name_server_that_changes_its_mind(names, monkeypatch):
    # First a public address, then one inside: only the first is ever seen.
    addresses = iter([["93.184.215.14"], [LOCAL]])
    look_up = socket.getaddrinfo

    def rebinding(host, port, *arguments, **options):
        if host == "example.com":
            names.known["example.com"] = next(addresses)
        return look_up(host, port, *arguments, **options)

    tried = []

    def connect(address, *arguments, **options):
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket, "create_connection", connect)
    refused("http://example.com/", allowing("example.com"), "failed")
    assert tried == ["93.184.215.14"]


def test_what_is_sent(names, monkeypatch):
    monkeypatch.setattr(module, "_is_public", lambda address: True)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    with serving(lambda handler: handler.send(b"picture")) as server:
        # The first address refuses: the second is tried.
        names.known["a.example.com"] = ["127.0.0.9", LOCAL]
        url = f"http://A.example.com.:{server.server_port}/é%20?q=ü#part"
        assert read_url(url, allowing("*.example.com"), NAME) == b"picture"
    [(path, headers)] = server.asked
    assert path == "/%C3%A9%20?q=%C3%BC"
    assert headers["Host"] == f"a.example.com:{server.server_port}"
    assert headers["Accept-Encoding"] == "identity"
    assert "Authorization" not in headers


# --- answers


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 404, 500, 503])
def test_other_statuses(status):
    with serving(lambda handler: handler.send(b"", status)) as server:
        refused(server.url, allowing(LOCAL), f"status {status}")


def test_sizes():
    def answer(handler):
        size = int(handler.path[1:])
        handler.send(bytes(size), content_length=None if handler.server.silent else size)

    with serving(answer) as server:
        for server.silent in (False, True):
            assert read_url(f"{server.url}/{LIMIT}", allowing(LOCAL), NAME) == bytes(LIMIT)
            refused(f"{server.url}/{LIMIT + 1}", allowing(LOCAL), "more than the 1000 bytes")


@pytest.mark.parametrize("chunked", [False, True])
def test_endless_bodies(chunked):
    ended = threading.Event()

    def answer(handler):
        handler.send(content_length=None, **({"transfer_encoding": "chunked"} if chunked else {}))
        part = b"1000\r\n" + bytes(0x1000) + b"\r\n" if chunked else bytes(0x1000)
        try:
            while True:
                handler.wfile.write(part)
        except OSError:
            ended.set()

    with serving(answer) as server:
        if chunked:
            Handler.protocol_version = "HTTP/1.1"
        try:
            refused(server.url, allowing(LOCAL, limit=100_000), "more than the 100000 bytes")
        finally:
            Handler.protocol_version = "HTTP/1.0"
        assert ended.wait(5)


def test_a_large_length_is_believed():
    with serving(lambda handler: (handler.send(content_length=10**12), time.sleep(2))) as server:
        started = time.monotonic()
        refused(server.url, allowing(LOCAL), "more than the 1000 bytes")
        assert time.monotonic() - started < 1.5


def test_compressed_answers():
    with serving(lambda handler: handler.send(b"x", content_encoding="gzip")) as server:
        refused(server.url, allowing(LOCAL), "compressed")


@pytest.mark.parametrize(
    "raw",
    [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
     b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000],
)  # fmt: skip
def test_answers_that_are_none(raw):
    with serving(lambda handler: handler.wfile.write(raw)) as server:
        refused(server.url, allowing(LOCAL), "connection to its host failed")


def test_nobody_there():
    with socket.create_server((LOCAL, 0)) as sock:
        port = sock.getsockname()[1]
    assert str(port) not in refused(f"http://{LOCAL}:{port}/", allowing(LOCAL), "connection to its host failed")


# --- time


def trickle(handler, head, part):
    handler.wfile.write(head)
    for _ in range(40):
        handler.wfile.write(part)
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "answer",
    [
        lambda handler: time.sleep(2),
        lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\n", b"a"),
        lambda handler: trickle(handler, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\n\r\n", b"a"),
        lambda handler: (time.sleep(0.2), handler.send(status=302, location="/again")),
    ],
)
def test_slow_servers(answer):
    with serving(answer) as server:
        started = time.monotonic()
        refused(server.url, allowing(LOCAL, seconds=0.5, redirects=20), r"did not come within 0\.5 s")
        assert 0.4 < time.monotonic() - started < 1.5


def test_a_server_that_says_nothing():
    for scheme in ("http", "https"):
        with socket.create_server((LOCAL, 0)) as sock:
            started = time.monotonic()
            url = f"{scheme}://{LOCAL}:{sock.getsockname()[1]}/"
            refused(url, allowing(LOCAL, seconds=0.5), r"did not come within 0\.5 s")
            assert time.monotonic() - started < 1.5


# --- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(status):
    def answer(handler):
        number = int(handler.path[1:])
        places = ["1", f"{handler.server.url}/2", f"//{LOCAL}:{handler.server.server_port}/3", "/4"]
        if number < handler.server.hops:
            handler.send(b"elsewhere", status, location=places[number])
        else:
            handler.send(b"picture")

    with serving(answer) as server:
        for server.hops in range(4):
            assert read_url(f"{server.url}/0", allowing(LOCAL), NAME) == b"picture"
        server.hops = 4
        refused(f"{server.url}/0", allowing(LOCAL), "redirected more than 3 times")
        server.hops = 1
        refused(f"{server.url}/0", allowing(LOCAL, redirects=0), "redirected more than 0 times")


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("http://evil.com/", "this host is not allowed"),
        ("http://169.254.169.254/latest/meta-data", "this host is not allowed"),
        ("//10.0.0.1/", "this host is not allowed"),
        ("http://localhost/", "this host is not allowed"),
        ("http://inner.example.com/", "this host is not allowed"),
        ("http://user:password@127.0.0.1/", "name or password"),
        ("file:///etc/passwd", "redirected to a URL that is not"),
        ("data:,x", "redirected to a URL that is not"),
        ("ftp://127.0.0.1/", "redirected to a URL that is not"),
        ("http://[", "the URL is broken|not allowed"),
        ("http://127.0.0.1:999999/", "the URL is broken"),
        ("\x7f\xff", "the URL is broken|status"),
    ],
)
def test_redirects_elsewhere(location, match, names, tmp_path):
    names.known["inner.example.com"] = ["10.0.0.1"]
    with serving(lambda handler: handler.send(b"", 302, location=location)) as server:
        fetching = allowing(LOCAL, "inner.example.com", directory=tmp_path)
        text = refused(server.url, fetching, match)
    assert len(server.asked) == 1
    assert "10.0.0.1" not in text
    assert "169." not in text


def test_a_redirect_that_leads_nowhere():
    with serving(lambda handler: handler.send(b"", 302)) as server:
        refused(server.url, allowing(LOCAL), "status 302")


# --- https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("no openssl to write a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    files = ["-keyout", f"{folder}/key", "-out", f"{folder}/certificate"]
    extension = ["-addext", "subjectAltName=DNS:images.example.com"]
    subprocess.run([*command.split(), *extension, *files], check=True, capture_output=True)
    return folder


def test_certificates_are_checked_by_name(certificate, names, monkeypatch):
    monkeypatch.setattr(module, "_is_public", lambda address: True)
    names.known.update({"images.example.com": [LOCAL], "other.example.com": [LOCAL]})
    tls, told = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    tls.load_cert_chain(certificate / "certificate", certificate / "key")
    tls.sni_callback = lambda sock, name, context: told.append(name)
    fetching = allowing("*.example.com", LOCAL)
    with serving(lambda handler: handler.send(b"picture"), tls) as server:
        url = server.url.replace(LOCAL, "images.example.com")
        # Nobody has signed it.
        refused(url, fetching, "connection to its host failed")
        trusting = ssl.create_default_context(cafile=certificate / "certificate")
        monkeypatch.setattr(module, "_tls", lambda: trusting)
        assert read_url(url, fetching, NAME) == b"picture"
        refused(url.replace("images", "other"), fetching, "connection to its host failed")
        refused(server.url, fetching, "connection to its host failed")
    assert told == ["images.example.com", "images.example.com", "other.example.com", None]
    assert len(server.asked) == 1
