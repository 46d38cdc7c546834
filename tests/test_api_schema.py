"""Requests made from the OpenAPI document: no answer is outside what it says, none is a bug, none shows a trace."""

import json

import pytest
from serve_cases import ScriptedEngine

from anychip.serve.api.app import make_app
from anychip.serve.api.log import Log
from anychip.serve.api.settings import ApiSettings

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
# That a request of the right form is accepted: no schema says that a model must exist, or a temperature be in range.
NOT_ASKED = [checks.positive_data_acceptance]


class Failures(Log):
    def failure(self, error, fields, secrets):
        raise AssertionError(f"a bug: {error!r}") from error

    def event(self, name, **fields):
        json.dumps(fields)


APP = make_app(ScriptedEngine(lambda _: "Hello"), ApiSettings("test", max_answers=4), Failures())
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)


@SCHEMA.parametrize()
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate],
                     suppress_health_check=list(hypothesis.HealthCheck))
def test_every_path_answers_as_documented(case) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "test"  # else hardly a request comes past the model's name
    found = case.call_and_validate(excluded_checks=NOT_ASKED)
    assert found.status_code < 500 and "Traceback" not in found.text
