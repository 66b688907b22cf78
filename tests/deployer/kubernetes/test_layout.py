"""Which Deployment carries what, and gets how much: a table of single steps, and whole stories on a small cluster."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployer import spec, status
from deployer.kubernetes.rendering.layout import Layout, SeenDeployment, Share, layout, seen_deployment, short, weights
from deployer.kubernetes.seeing import seen_deployments
from deployer.observed import Failure, History, Observed, RevisionSeen
from deployer.plan import Abilities, Plan, RevisionPlan, Target, plan

CLUSTER = Abilities(fetches=False, pods=True)
HOME, CANARY = "iris-predictor", "iris-predictor-canary"


def planned(revisions, traffic, asked=(("", "r2", 100),), previous="", stopped=False):
    """`revisions` are "r1" or "r1:2:5", with the fewest and most replicas."""
    made = []
    for text in revisions.split():
        name, low, high = [*text.split(":"), "1", "4"][:3] if ":" in text else (text, "1", "4")
        made.append(RevisionPlan(name, int(name[1:]), name, {}, int(low), int(high)))
    shares = tuple(target(*one.split("=")) for one in traffic.split())
    return Plan("default", "iris", tuple(made), shares, asked=asked, history=History(previous=previous), stopped=stopped)


def target(revision, percent):
    return Target(revision, int(percent), "")


def there(text):
    """ "iris-predictor:r1:3" has three pods of r1; ":r1:2+1" two of them of what it was before."""
    found = {}
    for one in text.split():
        name, revision, pods = one.split(":")
        new, _, old = pods.partition("+")
        both = int(new) + int(old or 0)
        found[name] = SeenDeployment(revision, both, int(new), both, both)
    return found


def shares(text):
    return {name: int(percent) for name, percent in (one.split("=") for one in text.split())}


def told(laid):
    workloads = " ".join(f"{one.name}:{one.revision}:{one.min_replicas}-{one.max_replicas}" for one in laid.workloads)
    return workloads, " ".join(f"{s.workload}={s.percent}" for s in laid.shares), " ".join(laid.retained)


A_CANARY = (("", "r2", 20),)
ENTRY = (("", "r1", 100), ("blue", "r2", 10))
ROWS = [
    # what happens, plan, Deployments, shares now → workloads, shares, retained
    ("the first revision starts: its route is there before it", planned("r1", "", (("", "r1", 100),)), "", "", ("iris-predictor:r1:1-4", "iris-predictor=100", "")),
    ("it is ready: it gets all", planned("r1", "r1=100", (("", "r1", 100),)), "iris-predictor:r1:1", "", ("iris-predictor:r1:1-4", "iris-predictor=100", "")),
    ("an update: Kubernetes rolls the stable Deployment", planned("r1 r2", "r1=100 r2=0"), "iris-predictor:r1:3", "iris-predictor=100", ("iris-predictor:r2:1-4", "iris-predictor=100", "")),
    ("half rolled", planned("r1 r2", "r1=100 r2=0"), "iris-predictor:r2:1+2", "iris-predictor=100", ("iris-predictor:r2:1-4", "iris-predictor=100", "")),
    ("a canary starts: no weight before it is ready", planned("r1 r2", "r1=100 r2=0", A_CANARY), "iris-predictor:r1:3", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=100 iris-predictor-canary=0", "")),
    ("a canary that the plan trusts, and its Deployment does not yet", planned("r1 r2", "r1=80 r2=20", A_CANARY), "iris-predictor:r1:3 iris-predictor-canary:r2:0", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=100 iris-predictor-canary=0", "")),
    ("a canary is ready", planned("r1 r2", "r1=80 r2=20", A_CANARY), "iris-predictor:r1:3 iris-predictor-canary:r2:1", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=80 iris-predictor-canary=20", "")),
    ("another candidate in its place: no weight while it is rolled", planned("r1 r3", "r1=80 r3=20", (("", "r3", 20),)), "iris-predictor:r1:3 iris-predictor-canary:r3:1+1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r1:1-4 iris-predictor-canary:r3:1-4", "iris-predictor=100 iris-predictor-canary=0", "")),
    ("0 %: it runs, and gets nothing", planned("r1 r2", "r1=100 r2=0", (("", "r2", 0),)), "iris-predictor:r1:3 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=100 iris-predictor-canary=0", "")),
    ("promotion: the stable one is rolled while the split stands", planned("r2", "r2=100", previous="r1"), "iris-predictor:r1:3 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r2:1-4", "iris-predictor=80 iris-predictor-canary=20", CANARY)),
    ("promotion: not large enough for the plan, rolled all the same", planned("r1:3:4 r2:3:4", "r1=80 r2=20"), "iris-predictor:r1:3 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r2:3-4", "iris-predictor=80 iris-predictor-canary=20", CANARY)),
    ("promotion: half rolled", planned("r2", "r2=100", previous="r1"), "iris-predictor:r2:2+1 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r2:1-4", "iris-predictor=80 iris-predictor-canary=20", CANARY)),
    ("promotion: rolled, so it gets all, and the candidate waits until everybody knows", planned("r2", "r2=100", previous="r1"), "iris-predictor:r2:3 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r2:1-4", "iris-predictor=100", CANARY)),
    ("promotion: the candidate goes", planned("r2", "r2=100", previous="r1"), "iris-predictor:r2:3 iris-predictor-canary:r2:1", "iris-predictor=100", ("iris-predictor:r2:1-4", "iris-predictor=100", "")),
    ("promotion: the stable pods died, the candidate has them all until they are back", planned("r1 r2", "r1=0 r2=100"), "iris-predictor:r2:0 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r2:1-4", "iris-predictor=0 iris-predictor-canary=100", CANARY)),
    ("another update in the middle of a promotion", planned("r2 r3", "r2=100 r3=0", (("", "r3", 100),), previous="r1"), "iris-predictor:r2:1+2 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r3:1-4", "iris-predictor=80 iris-predictor-canary=20", CANARY)),
    ("rollback of a canary: nothing of it is wanted", planned("r1", "r1=100", (("", "r1", 100),)), "iris-predictor:r1:3 iris-predictor-canary:r2:1", "iris-predictor=80 iris-predictor-canary=20", ("iris-predictor:r1:1-4", "iris-predictor=100", CANARY)),
    ("rollback of what was promoted, by 0 %: the stable one is rolled back", planned("r1 r2", "r1=0 r2=100", (("", "r2", 0),)), "iris-predictor:r2:3", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=100 iris-predictor-canary=0", "")),
    ("a plan that routes round the stable revision: no candidate gets more than was asked for", planned("r1 r2", "r1=0 r2=100", A_CANARY), "iris-predictor:r1:1+2 iris-predictor-canary:r2:1", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-predictor-canary:r2:1-4", "iris-predictor=80 iris-predictor-canary=20", "")),
    ("an entry of the canary list", planned("r1 r2", "r1=90 r2=10", ENTRY), "iris-predictor:r1:3 iris-blue-predictor:r2:1", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-blue-predictor:r2:1-4", "iris-predictor=90 iris-blue-predictor=10", "")),
    ("two entries, one of them ready", planned("r1 r2 r3", "r1=90 r2=10 r3=0", (*ENTRY, ("green", "r3", 30))), "iris-predictor:r1:3 iris-blue-predictor:r2:1 iris-green-predictor:r3:0", "iris-predictor=90 iris-blue-predictor=10", ("iris-predictor:r1:1-4 iris-blue-predictor:r2:1-4 iris-green-predictor:r3:1-4", "iris-predictor=90 iris-blue-predictor=10 iris-green-predictor=0", "")),
    ("an entry with the stable one's own template", planned("r1", "r1=100", (("", "r1", 100), ("blue", "r1", 10))), "iris-predictor:r1:3 iris-blue-predictor:r1:1", "iris-predictor=100", ("iris-predictor:r1:1-4 iris-blue-predictor:r1:1-4", "iris-predictor=90 iris-blue-predictor=10", "")),
    ("an entry is removed: at once", planned("r1", "r1=100", (("", "r1", 100),)), "iris-predictor:r1:3 iris-blue-predictor:r2:1", "iris-predictor=90 iris-blue-predictor=10", ("iris-predictor:r1:1-4", "iris-predictor=100", "iris-blue-predictor")),
    ("whatever a plan can't name yet: what serves stays", planned("r1", "r1=100", (("", "", 100),)), "iris-predictor:r1:3", "iris-predictor=100", ("iris-predictor:r1:1-4", "iris-predictor=100", "")),
    ("stopped", planned("", "", stopped=True), "iris-predictor:r1:3", "iris-predictor=100", ("", "", "")),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "seen", "now", "wanted"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_one_step(plan, seen, now, wanted):
    assert told(layout("iris", plan, there(seen), shares(now))) == wanted


NAMED = [
    # promotion of an entry as KServe has it: spec.predictor takes its name
    ("it grows to what it replaces", planned("r2", "r2=100", previous="r1"), "iris-predictor:r1:3 iris-blue-predictor:r2:1", "iris-predictor=90 iris-blue-predictor=10", ("iris-blue-predictor:r2:3-4", "iris-blue-predictor=10 iris-predictor=90", HOME)),
    ("never to more than it may have", planned("r2:1:2", "r2=100", previous="r1"), "iris-predictor:r1:3 iris-blue-predictor:r2:1", "iris-predictor=90 iris-blue-predictor=10", ("iris-blue-predictor:r2:2-2", "iris-blue-predictor=10 iris-predictor=90", HOME)),
    ("it is as large, and gets all", planned("r2", "r2=100", previous="r1"), "iris-predictor:r1:3 iris-blue-predictor:r2:3", "iris-predictor=90 iris-blue-predictor=10", ("iris-blue-predictor:r2:1-4", "iris-blue-predictor=100", HOME)),
    ("the one before goes", planned("r2", "r2=100", previous="r1"), "iris-predictor:r1:3 iris-blue-predictor:r2:3", "iris-blue-predictor=100", ("iris-blue-predictor:r2:1-4", "iris-blue-predictor=100", "")),
    ("not ready by the plan: the one before has its share", planned("r1 r2:2:4", "r1=90 r2=10"), "iris-predictor:r1:1 iris-blue-predictor:r2:1", "iris-predictor=90 iris-blue-predictor=10", ("iris-blue-predictor:r2:2-4", "iris-blue-predictor=10 iris-predictor=90", HOME)),
    ("a new name without pods: the one before has all", planned("r1 r2", "r1=100 r2=0"), "iris-predictor:r1:3", "iris-predictor=100", ("iris-blue-predictor:r2:3-4", "iris-blue-predictor=0 iris-predictor=100", HOME)),
    ("a canary of it in the meantime", planned("r1 r2", "r1=80 r2=20", A_CANARY), "iris-predictor:r1:3 iris-blue-predictor-canary:r2:1", "iris-predictor=100", ("iris-blue-predictor:r1:3-4 iris-blue-predictor-canary:r2:1-4", "iris-blue-predictor=0 iris-blue-predictor-canary=20 iris-predictor=80", HOME)),
]  # fmt: skip


@pytest.mark.parametrize(("plan", "seen", "now", "wanted"), [row[1:] for row in NAMED], ids=[row[0] for row in NAMED])
def test_one_step_of_a_predictor_with_a_name(plan, seen, now, wanted):
    assert told(layout("iris", plan, there(seen), shares(now), "blue")) == wanted


def test_what_was_routed_to_lately_stays_a_little():
    promoted = planned("r2", "r2=100", previous="r1")
    seen = there("iris-predictor:r2:3 iris-predictor-canary:r2:1")
    assert layout("iris", promoted, seen, {HOME: 100}, lately=[CANARY]).retained == (CANARY,)


def test_a_roll_counts_for_the_revision_that_was_rolled_out_last():
    rolling = there("iris-predictor:r2:1+2 iris-predictor-canary:r3:1")
    now = {HOME: 80, CANARY: 20, "gone": 5}
    assert weights(now, rolling, History(rolled_out="r1")) == {"r1": 80, "r3": 20}
    rolled = there("iris-predictor:r2:3 iris-predictor-canary:r2:1")
    assert weights(now, rolled, History(rolled_out="r1")) == {"r2": 100}


def test_a_promotion_counts_for_what_the_stable_deployment_had_until_it_is_rolled():
    """What was rolled out last is the candidate by then, and the stable one is on its way to it."""
    rolling = {HOME: SeenDeployment("r2", 2, 1, 1, 1, others=frozenset(["r1"])), CANARY: SeenDeployment("r2", 1, 1, 1, 1)}
    now = {HOME: 80, CANARY: 20}
    assert weights(now, rolling, History(rolled_out="r2", previous="r1")) == {"r1": 80, "r2": 20}


def test_a_deployment_is_read_with_what_it_does_not_say():
    assert seen_deployment({}) == SeenDeployment("")
    raw = {
        "metadata": {"generation": 3},
        "spec": {"template": {"metadata": {"labels": {"serving.serveplane.dev/revision": "r1"}}}},
        "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 2, "availableReplicas": 1},
    }
    assert seen_deployment(raw) == SeenDeployment("r1", 3, 2, 2, 1, current=False)


def pod(revision, workload=HOME, **meta):
    labels = {"app": f"isvc.{workload}", "serving.serveplane.dev/revision": revision}
    return {"metadata": {"labels": labels, **meta}, "status": {"phase": "Running"}}


@pytest.mark.parametrize(
    ("why", "pods", "is_rolled"),
    [
        ("a label of its pods changes, and both templates are of one revision", [pod("r2"), pod("r2")], True),
        ("pods of the revision before answer", [pod("r1"), pod("r2")], False),
        ("the one before ends already", [pod("r1", deletionTimestamp="2026-11-24T08:00:00Z"), pod("r2")], True),
        ("none is known", [], False),
        ("only another Deployment's are known", [pod("r2", CANARY)], False),
    ],
)
def test_a_deployment_is_rolled_once_all_its_pods_are_of_its_revision(why, pods, is_rolled):
    meta = {"name": HOME, "generation": 3, "labels": {"component": "predictor"}}
    template = {"metadata": {"labels": {"serving.serveplane.dev/revision": "r2"}}}
    status = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 1, "availableReplicas": 2}
    raw = {"metadata": meta, "spec": {"template": template}, "status": status}
    assert seen_deployments([raw], pods)[HOME].is_rolled == is_rolled, why


def test_long_names_stay_apart():
    one, two = short("a" * 70 + "-1"), short("a" * 70 + "-2")
    assert len(one) == len(two) == 63
    assert one != two
    assert short("iris-predictor") == "iris-predictor"


# stories: the spec is changed, the controller reconciles, a small cluster does what Kubernetes does


def model(uri, **predictor):
    return {
        "model": {"modelFormat": {"name": "sklearn"}, "storageUri": f"s3://m/{uri}"},
        "minReplicas": 2,
        "maxReplicas": 6,
    } | predictor


def service(predictor, *canary):
    raw = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "iris"},
        "spec": {"predictor": predictor},
    }
    raw["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "Standard"}
    return spec.parse(raw | {"spec": {"predictor": predictor, **({"canary": list(canary)} if canary else {})}})


@dataclasses.dataclass
class Pods:
    """A Deployment: pods by revision, all of them ready but those of broken revisions."""

    revision: str
    size: int
    pods: dict = dataclasses.field(default_factory=dict)

    def ready(self, broken):
        return sum(count for revision, count in self.pods.items() if revision not in broken)

    def roll(self, broken):
        """One step of a rolling update: a pod more of the new, then away with what is not needed."""
        new = self.pods.get(self.revision, 0)
        total = sum(self.pods.values())
        if new < self.size and total <= self.size:
            self.pods[self.revision] = new + 1
        for old in [one for one in self.pods if one != self.revision]:
            if self.ready(broken) > self.size or old in broken:
                self.pods[old] -= 1
        while self.pods.get(self.revision, 0) > self.size:
            self.pods[self.revision] -= 1
        self.pods = {revision: count for revision, count in self.pods.items() if count}


class World:
    def __init__(self):
        self.broken, self.deployments, self.shares, self.history = set(), {}, {}, History()
        self.revisions, self.laid, self.load = {}, Layout(), 2
        self.trail, self.failures, self.told = [], {}, {}

    def seen(self):
        return {
            name: SeenDeployment(
                d.revision,
                sum(d.pods.values()),
                d.pods.get(d.revision, 0),
                d.ready(self.broken),
                d.ready(self.broken),
                others=frozenset(d.pods) - {d.revision},
            )
            for name, d in self.deployments.items()
        }

    def observed(self):
        count = {name: sum(d.pods.get(name, 0) for d in self.deployments.values()) for name in self.revisions}
        ready = {name: 0 if name in self.broken else n for name, n in count.items()}
        seen = [
            RevisionSeen(
                r.name, r.number, r.hash, r.template, count[r.name], ready[r.name], ready[r.name], self.failures.get(r.name)
            )
            for r in self.revisions.values()
        ]
        return Observed(tuple(seen), {}, weights(self.shares, self.seen(), self.history), self.history)

    def reconcile(self, wanted):
        made = plan(wanted, self.observed(), abilities=CLUSTER)
        self.laid = layout("iris", made, self.seen(), self.shares, wanted.spec.predictor.name or "")
        self.history = made.history
        self.revisions |= {r.name: r for r in made.revisions}
        for one in self.laid.workloads:
            d = self.deployments.setdefault(one.name, Pods(one.revision, one.min_replicas))
            d.revision, d.size = one.revision, min(one.max_replicas, max(one.min_replicas, d.size))
        keep = {*(one.name for one in self.laid.workloads), *self.laid.retained}
        self.shares = {s.workload: s.percent for s in self.laid.shares}
        self.deployments = {name: d for name, d in self.deployments.items() if name in keep}
        self.check()
        self.told = status.derive(wanted, made, self.observed(), {}, 0.0)

    def check(self):
        assert sum(self.shares.values()) in (0, 100)
        seen = self.seen()
        for name, percent in self.shares.items():
            anyone = any(one.available for one in seen.values())
            is_first = not self.history.rolled_out
            assert not percent or seen[name].available or not anyone or is_first, f"{name} gets {percent} % and has no pod"
        line = " ".join(f"{name}={percent}" for name, percent in self.shares.items())
        if not self.trail or self.trail[-1] != line:
            self.trail.append(line)

    def settle(self, wanted, steps=60):
        """Until nothing changes any more; the shares on the way."""
        self.trail = []
        for _ in range(steps):
            before = (str(self.deployments), dict(self.shares), self.history)
            self.reconcile(wanted)
            for one in self.deployments.values():
                one.roll(self.broken)
            if before == (str(self.deployments), dict(self.shares), self.history):
                return self.trail
        raise AssertionError(f"it goes on and on: {self.trail[-5:]}")

    def carries(self):
        return {name: d.pods for name, d in self.deployments.items()}


ONE, TWO = "iris-predictor-00001", "iris-predictor-00002"


@pytest.fixture
def world():
    made = World()
    made.settle(service(model("one")))
    return made


def test_a_whole_update_never_routes_anywhere_else(world):
    assert world.settle(service(model("two"))) == ["iris-predictor=100"]
    assert world.carries() == {HOME: {TWO: 2}}
    assert world.history == History(TWO, TWO, TWO, ONE)


def test_an_update_that_does_not_get_ready_leaves_what_serves(world):
    world.broken = {TWO}
    world.settle(service(model("two")))
    assert world.carries() == {HOME: {ONE: 2, TWO: 1}}
    assert world.shares == {HOME: 100}
    world.settle(service(model("one")))
    assert world.carries() == {HOME: {ONE: 2}}


def test_a_canary_promoted(world):
    assert world.settle(service(model("two", canaryTrafficPercent=20))) == [
        "iris-predictor=100 iris-predictor-canary=0",
        "iris-predictor=80 iris-predictor-canary=20",
    ]
    assert world.carries() == {HOME: {ONE: 2}, CANARY: {TWO: 1}}
    world.deployments[HOME].size = 5  # its autoscaler thinks so
    world.settle(service(model("two", canaryTrafficPercent=20)))
    assert world.settle(service(model("two"))) == ["iris-predictor=80 iris-predictor-canary=20", "iris-predictor=100"]
    assert world.carries() == {HOME: {TWO: 5}}
    assert world.history.previous == ONE


def ready(told):
    one = next(one for one in told["conditions"] if one["type"] == "Ready")
    return one["status"], one.get("reason", "")


def percents(told):
    return {one["revisionName"]: one["percent"] for one in told["components"]["predictor"]["traffic"] if one["percent"]}


def test_a_promotion_is_ready_once_the_requests_are_where_the_spec_wants_them(world):
    """KServe's way to wait, a condition and a generation, must not be through before."""
    world.settle(service(model("two", canaryTrafficPercent=20, minReplicas=1)))
    wanted, seen = service(model("two", minReplicas=1)), []
    for _ in range(12):
        world.reconcile(wanted)
        carried = {r for name, percent in world.shares.items() if percent for r in world.deployments[name].pods}
        assert (ready(world.told)[0] == "True") == (carried == {TWO}), world.told
        seen.append(percents(world.told))
        world.deployments[HOME].roll(())
    assert seen[0] == {ONE: 80, TWO: 20}
    assert seen[-1] == {TWO: 100}


def test_a_promotion_that_has_no_room_says_so_with_the_shares_as_they_are(world):
    world.settle(service(model("two", canaryTrafficPercent=20, minReplicas=1)))
    world.failures = {TWO: Failure("Unschedulable", "no node takes pod iris-predictor-x", 0.0)}
    for _ in range(3):
        world.reconcile(service(model("two", minReplicas=1)))
        assert ready(world.told) == ("False", "Unschedulable")
        assert percents(world.told) == {ONE: 80, TWO: 20}
        assert world.told["modelStatus"]["lastFailureInfo"]["reason"] == "Unschedulable"


@pytest.mark.parametrize("back", [service(model("one")), service(model("two", canaryTrafficPercent=0))])
def test_a_canary_rolled_back(world, back):
    world.settle(service(model("two", canaryTrafficPercent=20)))
    trail = world.settle(back)
    assert trail[0].startswith("iris-predictor=100"), "at once"
    assert world.carries()[HOME] == {ONE: 2}


def test_what_was_promoted_rolled_back_by_zero_percent(world):
    world.settle(service(model("two")))
    world.settle(service(model("two", canaryTrafficPercent=0)))
    assert world.carries() == {HOME: {ONE: 2}, CANARY: {TWO: 2}}
    assert world.shares == {HOME: 100, CANARY: 0}


def test_a_broken_canary_never_gets_anything(world):
    world.broken = {TWO}
    assert world.settle(service(model("two", canaryTrafficPercent=50))) == ["iris-predictor=100 iris-predictor-canary=0"]


def test_an_entry_of_the_list_promoted_by_name_keeps_its_pods(world):
    blue = {
        "trafficPercent": 30,
        "predictor": {"name": "blue", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://m/two"}},
    }
    world.settle(service(model("one"), blue))
    assert world.shares == {HOME: 70, "iris-blue-predictor": 30}
    world.deployments[HOME].size = 5
    world.settle(service(model("one"), blue))
    trail = world.settle(service(model("two", name="blue")))
    assert trail == ["iris-blue-predictor=30 iris-predictor=70", "iris-blue-predictor=100"]
    assert world.carries() == {"iris-blue-predictor": {TWO: 5}}


def test_an_entry_of_the_list_promoted_without_its_name(world):
    blue = {
        "trafficPercent": 30,
        "predictor": {"name": "blue", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://m/two"}},
    }
    world.settle(service(model("one"), blue))
    trail = world.settle(service(model("two")))
    assert trail == ["iris-predictor=70 iris-blue-predictor=30", "iris-predictor=100"]
    assert world.carries() == {HOME: {TWO: 2}}


BLUE = {
    "trafficPercent": 30,
    "predictor": {"name": "blue", "model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://m/b"}},
}
# (model, canaryTrafficPercent, minReplicas, name, whether there is an entry in the list)
SPECS = st.one_of(
    st.tuples(st.sampled_from("abc"), st.sampled_from([None, 0, 10, 50, 100]), st.integers(1, 3), st.just(""), st.just(False)),
    st.tuples(st.sampled_from("ac"), st.none(), st.just(1), st.just(""), st.just(True)),
    st.just(("b", None, 1, "blue", False)),
)


def written(uri, percent, low, name, listed):
    predictor = model(uri, minReplicas=low) | ({"name": name} if name else {})
    return service(predictor | ({} if percent is None else {"canaryTrafficPercent": percent}), *([BLUE] if listed else []))


@settings(max_examples=150)
@given(st.lists(st.tuples(SPECS, st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=6))
def test_any_story_ends_with_the_newest_spec_and_routes_to_pods_all_the_way(story):
    world = World()
    for about, steps, grown in story:
        for at in range(steps):
            world.reconcile(written(*about))
            for d in world.deployments.values():
                if at == grown:
                    d.size += grown
                d.roll(world.broken)
    wanted = written(*story[-1][0])
    world.settle(wanted)
    predictor, canary = wanted.spec.predictor, wanted.spec.canary
    assert sum(world.shares.values()) == 100
    percent = predictor.canary_traffic_percent
    latest = world.history.created
    if canary:
        assert world.shares["iris-blue-predictor"] == 30
    elif percent in (None, 100):
        name = "iris-blue-predictor" if predictor.name else HOME
        assert set(world.deployments) == {name}
        assert world.carries()[name].keys() == {latest}
    elif len(world.deployments) > 1:
        assert world.shares[CANARY] == percent
        assert world.carries()[CANARY].keys() == {latest}


def test_shares_are_of_workloads_that_exist():
    assert Share("iris-predictor", 100) in layout("iris", planned("r1", "r1=100", (("", "r1", 100),)), {}, {}).shares
