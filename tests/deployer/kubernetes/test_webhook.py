"""The webhook: what it decides, in tables; that nothing makes it fail; and a round trip over real TLS."""

import base64
import copy
import http.client
import json
import socket
import ssl
import threading
import time
from contextlib import contextmanager

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer.errors import Conflict
from deployer.kubernetes.admission import reviews
from deployer.kubernetes.admission.certificate import read, renewed
from deployer.kubernetes.admission.webhook import MAX_BODY, Rotation, Webhook, refresh, service_hosts, with_bundle
from deployer.runtimes import KINDS, parse_runtime
from deployer.spec import KIND, as_object, parse
from tests.deployer.test_runtimes import auto, runtime
from tests.deployer.test_validation import ACCEPTED, MODEL, REFUSED, canaries, canary, model, service, with_

NOW = 1_800_000_000.0
DAY = 86400.0


def asked(raw, old=None, operation=None, kind=KIND, **fields):
    request = {
        "uid": "u-1",
        "kind": {"group": "serving.kserve.io", "version": "v1beta1", "kind": kind},
        "operation": operation or ("UPDATE" if old else "CREATE"),
        "namespace": "default",
        "name": "iris",
        "object": raw,
        "oldObject": old,
        **fields,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def reviewed(*args, installed=(), notices=reviews.of_any_cluster, **fields):
    answer = reviews.review(asked(*args, **fields), installed, notices)
    assert (answer["apiVersion"], answer["kind"], answer["response"]["uid"]) == ("admission.k8s.io/v1", "AdmissionReview", "u-1")
    return answer["response"]


def defaulted(raw, old=None, **fields):
    """The object as the API server goes on with it, and whether it was changed."""
    response = reviews.default(asked(raw, old, **fields))["response"]
    assert response["allowed"]
    if "patch" not in response:
        return raw
    assert response["patchType"] == "JSONPatch"
    ((operation),) = json.loads(base64.b64decode(response["patch"]))
    assert (operation["op"], operation["path"]) == ("replace", "/spec")
    return {**raw, "spec": operation["value"]}


# what is refused

FORMATS = ("a misspelt format", "a format from nowhere")
# nothing there to review, or another kind: the API server sends nothing like it
NOT_SENT = ("nothing", "another kind", "another version")


@pytest.mark.parametrize(
    ("raw", "path", "text"),
    [row[1:] for row in REFUSED if row[0] not in FORMATS and row[0] not in NOT_SENT],
    ids=[row[0] for row in REFUSED if row[0] not in FORMATS and row[0] not in NOT_SENT],
)
def test_what_the_parser_refuses_is_refused_with_each_mistake_as_a_cause(raw, path, text):
    response = reviewed(raw)
    status = response["status"]
    assert not response["allowed"]
    assert (status["code"], status["reason"], status["details"]["kind"], status["details"]["name"]) == (
        422,
        "Invalid",
        KIND,
        "iris",
    )
    (message,) = [cause["message"] for cause in status["details"]["causes"] if cause["field"] == path]
    assert text in message
    assert f"{path}: {message}" in status["message"].splitlines()


@pytest.mark.parametrize("raw", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_what_the_parser_takes_is_taken(raw):
    response = reviewed(raw)
    assert response["allowed"]
    assert "status" not in response


def test_all_mistakes_are_told_at_once():
    raw = with_(minReplicas=3, maxReplicas=1, canaryTrafficPercent=120, minReplica=2)
    status = reviewed(raw)["status"]
    fields = [cause["field"] for cause in status["details"]["causes"]]
    assert sorted(fields) == [f"spec.predictor.{name}" for name in ("canaryTrafficPercent", "maxReplicas", "minReplica")]
    assert len(status["message"].splitlines()) == 3


def test_what_has_no_effect_on_a_cluster_is_a_warning():
    response = reviewed(with_(scaleMetric="rps", scaleTarget=5, minReplicas=0))
    assert response["allowed"]
    assert [text.partition(":")[0] for text in response["warnings"]] == [
        "spec.predictor.minReplicas",
        "spec.predictor.scaleMetric",
    ]


def test_a_format_that_nothing_serves_is_a_warning_because_its_runtime_may_come_next():
    raw = model(modelFormat={"name": "sklern"}, storageUri="s3://m")
    (warning,) = reviewed(raw)["warnings"]
    assert warning.startswith("spec.predictor.model.modelFormat.name: there is no model format 'sklern'; did you mean 'sklearn'?")
    assert "warnings" not in reviewed(raw, installed=[parse_runtime(runtime("mine", auto("sklern")))])


@pytest.mark.parametrize(
    ("named", "text"),
    [
        ({"runtime": "nosuch"}, "spec.predictor.model: there is no runtime 'nosuch'"),
        ({"runtime": "kserve-onnxserver"}, "spec.predictor.model: the runtime 'kserve-onnxserver' does not serve this model"),
        ({"modelFormat": {"name": "xgboost"}}, "spec.predictor.model: no runtime serves xgboost"),
    ],
)
def test_a_model_that_no_runtime_serves_is_a_warning_too(named, text):
    (warning,) = reviewed(model(**named))["warnings"]
    assert warning.startswith(text)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (with_(name="a"), with_(name="b"), "spec.predictor.name"),
        (with_(name="a"), service({"model": {**MODEL, "storageUri": "/models/2.skops"}, "name": "b"}), None),
        (with_(), with_(minReplicas=2), None),
        # what was taken before its mistake was known may be mended, and not made worse
        (with_(minReplica=2), with_(minReplicas=2), None),
        (with_(minReplica=2), with_(minReplica=3), "spec.predictor.minReplica"),
    ],
)
def test_a_change_is_checked_against_what_was_there(old, new, path):
    response = reviewed(new, old)
    assert response["allowed"] == (path is None)
    if path:
        assert path in response["status"]["message"]


BROKEN = with_(minReplica=2)
LABELLED = {**BROKEN, "metadata": {**BROKEN["metadata"], "labels": {"a": "b"}}}
ENDING = {**with_(minReplica=3), "metadata": {"name": "iris", "deletionTimestamp": "2026-11-24T08:00:00Z"}}


@pytest.mark.parametrize(
    ("why", "how", "allowed"),
    [
        ("it is new", {"raw": BROKEN}, False),
        ("its status changed", {"raw": {**BROKEN, "status": {"url": "x"}}, "old": BROKEN}, True),
        ("a finalizer was added", {"raw": {**BROKEN, "metadata": {"name": "iris", "finalizers": ["x"]}}, "old": BROKEN}, True),
        ("a label was added", {"raw": LABELLED, "old": BROKEN}, False),
        ("it is ending", {"raw": ENDING, "old": BROKEN}, True),
        ("it is deleted", {"raw": None, "old": BROKEN, "operation": "DELETE"}, True),
        ("it is scaled by the subresource", {"raw": {"kind": "Scale"}, "subResource": "scale"}, True),
        ("it is somebody else's", {"raw": {"spec": 3}, "kind": "InferenceGraph"}, True),
    ],
)
def test_only_what_people_write_is_judged(why, how, allowed):
    assert reviewed(**how)["allowed"] == allowed, why


def test_an_object_without_a_namespace_is_in_the_requests():
    long = "n" * 20
    raw = service(metadata={"name": "a" * 50})
    assert "metadata.name" in reviewed(raw, namespace=long)["status"]["message"]
    assert reviewed(raw, namespace="n")["allowed"]


# runtimes


@pytest.mark.parametrize("kind", KINDS)
def test_a_runtime_is_refused_where_another_is_as_good(kind):
    other = parse_runtime(runtime("other", auto("sklearn", 1), kind=kind))
    response = reviewed(runtime("mine", auto("sklearn", 1), kind=kind), kind=kind, installed=[other])
    assert "the runtime 'other' serves sklearn too" in response["status"]["message"]
    assert response["status"]["details"]["causes"][0]["field"] == "spec.supportedModelFormats"
    assert reviewed(runtime("mine", auto("sklearn", 2), kind=kind), kind=kind, installed=[other])["allowed"]


def test_a_runtimes_own_mistakes_are_told():
    raw = runtime("mine", auto("sklearn"), containers=[{"name": "a"}], protocolVersion=["v1"])
    status = reviewed(raw, kind="ServingRuntime")["status"]
    assert {cause["field"] for cause in status["details"]["causes"]} == {"spec.containers", "spec.protocolVersion"}


# defaults

KEYED = service({"sklearn": {"storageUri": "/m.skops", "args": ["--a"]}, "minReplicas": 2})
BECAME = service({"minReplicas": 2, "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "/m.skops", "args": ["--a"]}})
CHANGED = service({"sklearn": {"storageUri": "/2.skops", "args": ["--a"]}, "minReplicas": 2})


def echo(keyed, stored):
    """What comes of applying a manifest again: the key is added, and `model` stays."""
    merged = copy.deepcopy(keyed)
    merged["spec"]["predictor"]["model"] = stored["spec"]["predictor"]["model"]
    return merged


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (KEYED, BECAME),
        (BECAME, BECAME),
        (service({"containers": [{"image": "x"}]}), service({"containers": [{"image": "x", "name": "kserve-container"}]})),
        (with_(maxReplicas=0, timeout=None), with_()),
        (canaries(canary()), canaries(canary())),
        (canaries({"trafficPercent": 5, "predictor": {"name": "v2", "onnx": {"storageUri": "/m.onnx"}}}),
         canaries({"trafficPercent": 5, "predictor": {"name": "v2", "model": {"modelFormat": {"name": "onnx"}, "storageUri": "/m.onnx"}}})),
        # what is wrong is left as it is, for `review` to tell
        (service({"sklearn": {"storageUri": "/m.skops"}, "onnx": {}}), service({"sklearn": {"storageUri": "/m.skops"}, "onnx": {}})),
        (service({"sklearn": {"storageUri": "/m.skops"}, "minReplica": 1}), service({"sklearn": {"storageUri": "/m.skops"}, "minReplica": 1})),
    ],
)  # fmt: skip
def test_a_service_gets_its_canonical_form(raw, wanted):
    assert defaulted(raw) == wanted
    assert defaulted(wanted) == wanted


@pytest.mark.parametrize("raw", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_the_canonical_form_means_the_same_and_stays_as_it_is(raw):
    first = defaulted(raw)
    assert parse(first, formats=None) == parse(raw, formats=None)
    assert "patch" not in reviews.default(asked(first))["response"]
    assert as_object(parse(first, formats=None)) == first | {"spec": first["spec"]}


def test_applying_an_older_key_again_changes_nothing():
    stored = defaulted(KEYED)
    assert defaulted(echo(KEYED, stored), stored) == stored


def test_applying_an_older_key_with_another_model_changes_the_model():
    stored = defaulted(KEYED)
    found = defaulted(echo(CHANGED, stored), stored)
    assert found["spec"]["predictor"]["model"]["storageUri"] == "/2.skops"
    assert reviewed(found, stored)["allowed"]


def test_a_model_and_a_key_that_are_both_new_are_refused():
    both = service({"model": MODEL, "sklearn": {"storageUri": "/m.skops"}})
    assert defaulted(both, with_(minReplicas=3)) is not None
    assert not reviewed(defaulted(both), None)["allowed"]
    other = service({"model": {**MODEL, "storageUri": "/other.skops"}})
    assert not reviewed(defaulted(both, other), other)["allowed"]


# anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=15,
)
FIELD = st.sampled_from(
    ["predictor", "model", "sklearn", "canary", "containers", "storageUri", "minReplicas", "name", "modelFormat"]
)
SPEC = st.recursive(JSON, lambda inner: st.dictionaries(FIELD, inner, max_size=4) | st.lists(inner, max_size=2), max_leaves=12)
OBJECT = st.fixed_dictionaries(
    {},
    optional={
        "apiVersion": JSON | st.just("serving.kserve.io/v1beta1"),
        "kind": JSON | st.just(KIND),
        "metadata": JSON | st.fixed_dictionaries({"name": st.just("iris")}, optional={"labels": JSON, "annotations": JSON}),
        "spec": SPEC,
    },
)
REQUEST = st.fixed_dictionaries(
    {"uid": st.text(max_size=3), "kind": st.fixed_dictionaries({"group": st.just("serving.kserve.io"), "kind": st.sampled_from([KIND, *KINDS])})},
    optional={
        "operation": st.sampled_from(["CREATE", "UPDATE"]) | JSON,
        "object": OBJECT | JSON,
        "oldObject": OBJECT | JSON,
        "namespace": JSON,
        "name": JSON,
        "subResource": st.just("") | JSON,
    },
)  # fmt: skip


@settings(max_examples=400)
@given(JSON | st.fixed_dictionaries({"request": JSON | REQUEST}))
def test_whatever_comes_there_is_an_answer_that_is_json_or_it_is_no_review(raw):
    before = copy.deepcopy(raw)
    for decide in (reviews.review, reviews.default):
        try:
            answer = decide(raw)
        except reviews.NoReview:
            continue
        assert isinstance(answer["response"]["allowed"], bool)
        json.dumps(answer)
    assert isinstance(reviews.namespace(raw), str)
    assert repr(raw) == repr(before)


@settings(max_examples=200)
@given(SPEC, SPEC)
def test_a_service_of_anything_is_refused_or_taken_and_never_breaks(spec, before):
    raw, old = ({**service(), "spec": one} for one in (spec, before))
    response = reviewed(raw, old)
    found = defaulted(raw, old)
    if response["allowed"]:
        assert defaulted(found, old) == found or raw["spec"] == old["spec"]


# over TLS

HOSTS = ("webhook.serveplane.svc", "127.0.0.1")


@contextmanager
def listening(installed=lambda namespace: (), certificate=None):
    webhook = Webhook(installed, port=0, address="127.0.0.1")
    try:
        if certificate is not None:
            webhook.use(certificate)
        webhook.start()
        yield webhook
    finally:
        webhook.stop()


@pytest.fixture(scope="module")
def certificate():
    return renewed(None, HOSTS, time.time())


def connection(port, authorities, host="127.0.0.1"):
    context = ssl.create_default_context(cadata=authorities.decode())
    # as strict as clients are going to be
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return http.client.HTTPSConnection(host, port, context=context, timeout=10)


def post(client, path, body):
    client.request("POST", path, json.dumps(body) if not isinstance(body, bytes) else body, {"Content-Type": "application/json"})
    answer = client.getresponse()
    return answer.status, answer.read()


def test_reviews_come_and_go_over_one_connection(certificate):
    seen = []

    def installed(namespace):
        seen.append(namespace)
        return [parse_runtime(runtime("other", auto("sklearn", 1)))]

    with listening(installed, certificate) as webhook:
        client = connection(webhook.port, certificate.authorities)
        for path, body, allowed in (
            ("/validate", asked(with_()), True),
            ("/validate?timeout=10s", asked(BROKEN), False),
            ("/default", asked(KEYED), True),
            ("/validate", asked(runtime("mine", auto("sklearn", 1)), kind="ServingRuntime", namespace="default"), False),
        ):
            code, text = post(client, path, body)
            assert code == 200
            response = json.loads(text)["response"]
            assert response["allowed"] == allowed
            assert ("patch" in response) == (path == "/default")
        client.close()
    assert seen == ["default"] * 3


@pytest.mark.parametrize(
    ("path", "body", "code", "text"),
    [
        ("/other", {}, 404, "/validate"),
        ("/validate", b"{", 400, "wanted JSON"),
        ("/validate", b"[" * 100_000, 400, "wanted JSON"),
        ("/validate", b"\xff\xfe", 400, "wanted JSON"),
        ("/validate", {"request": 3}, 400, "wanted an AdmissionReview"),
        ("/default", [], 400, "wanted an AdmissionReview"),
    ],
)
def test_what_is_no_review_is_refused_and_the_connection_goes_on(certificate, path, body, code, text):
    with listening(certificate=certificate) as webhook:
        client = connection(webhook.port, certificate.authorities)
        found, said = post(client, path, body)
        assert (found, text in said.decode()) == (code, True)
        assert post(client, "/validate", asked(with_()))[0] == 200
        client.close()


def test_too_much_and_too_little_said_ends_the_connection(certificate):
    with listening(certificate=certificate) as webhook:
        for headers, code in (
            ({"Content-Length": str(MAX_BODY + 1)}, 413),
            ({"Transfer-Encoding": "chunked"}, 411),
            ({"Content-Length": "-1"}, 411),
        ):
            client = connection(webhook.port, certificate.authorities)
            client.putrequest("POST", "/validate")
            for name, value in headers.items():
                client.putheader(name, value)
            client.endheaders()
            answer = client.getresponse()
            assert (answer.status, answer.headers["Connection"]) == (code, "close")
            client.close()


def test_what_breaks_inside_is_an_error_and_stops_nobody(certificate, caplog):
    def installed(namespace):
        raise RuntimeError("the cache is not there")

    with listening(installed, certificate) as webhook:
        client = connection(webhook.port, certificate.authorities)
        assert post(client, "/validate", asked(with_()))[0] == 500
        assert post(client, "/default", asked(KEYED))[0] == 200
        client.close()
    assert "the cache is not there" in caplog.text


def test_who_speaks_no_tls_or_says_nothing_holds_up_nobody(certificate):
    with (
        listening(certificate=certificate) as webhook,
        socket.create_connection(("127.0.0.1", webhook.port)),
        socket.create_connection(("127.0.0.1", webhook.port)) as plain,
    ):
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client = connection(webhook.port, certificate.authorities)
        assert post(client, "/validate", asked(with_()))[0] == 200
        client.close()


def test_many_ask_at_once(certificate):
    with listening(certificate=certificate) as webhook:
        codes = []

        def ask():
            client = connection(webhook.port, certificate.authorities)
            codes.extend(post(client, "/validate", asked(with_()))[0] for _ in range(5))
            client.close()

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert codes == [200] * 100


def test_it_answers_for_a_while_after_it_was_told_to_leave_and_each_connection_for_the_last_time(certificate):
    with listening(certificate=certificate) as webhook:
        kept = connection(webhook.port, certificate.authorities)
        assert post(kept, "/validate", asked(with_()))[0] == 200
        assert kept.sock is not None
        leaving = threading.Thread(target=webhook.leave, args=[2.0])
        leaving.start()
        while kept.sock is not None:
            assert post(kept, "/validate", asked(with_()))[0] == 200
        late = connection(webhook.port, certificate.authorities)
        assert post(late, "/validate", asked(with_()))[0] == 200
        assert late.sock is None
        leaving.join(30)
        with pytest.raises(ConnectionRefusedError):
            late.connect()


def test_another_certificate_is_used_from_the_next_connection_on_and_the_old_ones_go_on(certificate):
    other = renewed(None, HOSTS, time.time())
    with listening(certificate=certificate) as webhook:
        before = connection(webhook.port, certificate.authorities)
        assert post(before, "/validate", asked(with_()))[0] == 200
        webhook.use(other)
        after = connection(webhook.port, other.authorities)
        assert post(after, "/validate", asked(with_()))[0] == 200
        assert post(before, "/validate", asked(with_()))[0] == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            post(connection(webhook.port, certificate.authorities), "/validate", asked(with_()))
        before.close()
        after.close()


# the certificate


def names(pem):
    found = x509.load_pem_x509_certificate(pem)
    return {str(one.value) for one in found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value}


def authorities(certificate):
    return x509.load_pem_x509_certificates(certificate.authorities)


def test_a_certificate_is_kept_as_a_secrets_entries():
    made = renewed(None, HOSTS, NOW)
    assert made.entries().keys() == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert read(made.entries()) == made
    assert names(made.certificate) == set(HOSTS)


MADE = renewed(None, HOSTS, NOW)
OTHER = renewed(None, HOSTS, NOW + 1)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"ca.crt": b"x", "ca.key": b"x", "tls.crt": b"x", "tls.key": b"x"},
        {**MADE.entries(), "tls.key": OTHER.key},
        {**MADE.entries(), "ca.key": OTHER.authority_key},
        {**MADE.entries(), "tls.crt": OTHER.certificate, "tls.key": OTHER.key},
        {**MADE.entries(), "tls.crt": MADE.certificate[:200]},
    ],
)
def test_a_secret_that_nobody_could_use_holds_no_certificate(entries):
    assert read(entries) is None


@pytest.mark.parametrize(
    ("days", "hosts", "same", "same_authority"),
    [
        (0, HOSTS, True, True),
        (59, HOSTS, True, True),
        (61, HOSTS, False, True),
        (1000, HOSTS, False, True),
        (0, ("another.serveplane.svc",), False, True),
        (3284, HOSTS, False, True),
        (3286, HOSTS, False, False),
        (-3, HOSTS, False, True),
    ],
)
def test_a_certificate_is_made_anew_in_time_and_its_authority_a_year_before_its_end(days, hosts, same, same_authority):
    found = renewed(MADE, hosts, NOW + days * DAY)
    assert (found is MADE) == same
    assert (authorities(found)[0] == authorities(MADE)[0]) == same_authority
    assert names(found.certificate) == set(hosts)
    assert read(found.entries()) == found
    assert renewed(found, hosts, NOW + days * DAY) is found


def test_an_authority_that_follows_is_trusted_beside_the_one_before_until_that_one_ends():
    later = renewed(MADE, HOSTS, NOW + 3286 * DAY)
    assert [one.serial_number for one in authorities(later)][1:] == [authorities(MADE)[0].serial_number]
    end = renewed(later, HOSTS, NOW + 3651 * DAY)
    assert [one.serial_number for one in authorities(end)] == [authorities(later)[0].serial_number]


class Kept:
    """A store as the API server is one: writing on what somebody else has changed meanwhile is a Conflict."""

    def __init__(self):
        self.entries, self.version, self.seen, self.trusted = {}, 0, 0, []

    def load(self):
        self.seen = self.version
        return self.entries

    def save(self, entries):
        if self.seen != self.version:
            raise Conflict("somebody else was first")
        self.entries, self.version = entries, self.version + 1

    def trust(self, bundle):
        assert self.entries["ca.crt"] == bundle, "it is kept before it is trusted"
        self.trusted.append(bundle)


def test_a_certificate_is_made_once_and_then_kept():
    store = Kept()
    first = refresh(store, HOSTS, NOW)
    assert refresh(store, HOSTS, NOW + DAY) == first
    assert (store.version, store.trusted) == (1, [first.authorities] * 2)
    assert refresh(store, HOSTS, NOW + 70 * DAY) != first
    assert store.version == 2


def test_of_two_replicas_that_start_at_once_the_second_takes_the_firsts():
    store = Kept()
    theirs = renewed(None, HOSTS, NOW)
    load = store.load

    def slow():
        found = load()
        if store.version == 0:
            store.entries, store.version = theirs.entries(), 1
        return found

    store.load = slow
    assert refresh(store, HOSTS, NOW) == theirs


def test_a_webhook_has_a_certificate_as_soon_as_its_rotation_has_started():
    with listening() as webhook:
        store = Kept()
        rotation = Rotation(webhook, store, HOSTS)
        rotation.start()
        client = connection(webhook.port, store.trusted[-1])
        assert post(client, "/validate", asked(with_()))[0] == 200
        client.close()
        rotation.stop()


def test_before_there_is_a_certificate_nobody_is_answered():
    with listening() as webhook, socket.create_connection(("127.0.0.1", webhook.port), timeout=10) as client:
        assert client.recv(1) == b""


def test_a_bundle_is_put_where_it_is_missing_and_nowhere_else():
    configuration = {"webhooks": [{"name": "a", "clientConfig": {"service": {"name": "w"}}}, {"name": "b", "clientConfig": {}}]}
    patched = with_bundle(configuration, b"PEM")
    assert [one["clientConfig"]["caBundle"] for one in patched["webhooks"]] == [base64.b64encode(b"PEM").decode()] * 2
    assert patched["webhooks"][0]["clientConfig"]["service"] == {"name": "w"}
    assert with_bundle(patched, b"PEM") is None
    assert with_bundle(patched, b"PEM2") is not None


def test_an_api_server_calls_a_service_by_these_names():
    assert service_hosts("hook", "serveplane") == ("hook.serveplane.svc", "hook.serveplane.svc.cluster.local")
