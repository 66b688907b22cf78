"""What the scaler makes of the predictors' own counts."""

import pytest

from deployer.autoscaler import Metric
from deployer.local.scaling import sample, settings, totals
from deployer.plan import RevisionPlan

PAGE = """# HELP serve_queue_rows Rows that wait
# TYPE serve_queue_rows gauge
serve_queue_rows{model="iris",version=""} 3.0
serve_queue_rows{model="other",version=""} 4.0
serve_request_duration_seconds_count{code="200",protocol="v1"} 1e+02
serve_request_duration_seconds_count{code="400",protocol="v1"} 5.0
process_cpu_seconds_total 1.25
"""


def test_a_page_is_summed_over_its_labels():
    assert totals(PAGE) == {
        "serve_queue_rows": 7.0,
        "serve_request_duration_seconds_count": 105.0,
        "process_cpu_seconds_total": 1.25,
    }


def counts(finished, busy=0.0, cpu=0.0, in_flight=0.0, waiting=0.0):
    return {
        "serve_request_duration_seconds_count": finished,
        "serve_compute_duration_seconds_sum": busy,
        "process_cpu_seconds_total": cpu,
        "serve_requests_in_flight": in_flight,
        "serve_queue_rows": waiting,
    }


def test_a_sample_is_what_was_counted_since_the_last_one():
    found = sample({1: counts(10, 1.0, 5.0, 2)}, {1: counts(30, 1.5, 5.25, 6, 3)}, 1.0)
    assert (found.finished, found.arrivals, found.busy_seconds, found.waiting, found.in_flight) == (20, 24, 0.5, 3, 6)


def test_a_model_that_costs_less_than_its_http_is_counted_by_its_cpu():
    assert sample({1: counts(0)}, {1: counts(100, 0.01, 0.3)}, 1.0).busy_seconds == 0.3


@pytest.mark.parametrize(
    ("before", "now"), [({}, {}), ({1: counts(5)}, {}), ({}, {1: counts(5)}), ({1: counts(5)}, {2: counts(5)})]
)
def test_without_a_replica_to_compare_nothing_is_known(before, now):
    assert sample(before, now, 1.0) is None


@pytest.mark.parametrize(
    ("metric", "target", "wanted"),
    [
        ("", 0, (Metric.WORK, 1.0)),
        ("cpu", 80, (Metric.WORK, 1.0)),
        ("concurrency", 4, (Metric.CONCURRENCY, 4.0)),
        ("rps", 0, (Metric.RPS, 200.0)),
    ],
)
def test_the_spec_s_metric_is_what_is_scaled_by(metric, target, wanted):
    made = settings(RevisionPlan("r", 1, "h", {}, 1, 3, metric, target), cores=2)
    assert (made.metric, made.target) == wanted
    assert (made.min_replicas, made.max_replicas, made.max_starting) == (1, 3, 2)
