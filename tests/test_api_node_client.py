"""OpenAI's Node client against the API; it runs where a folder with its node_modules is named."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serve_cases import ScriptedEngine, serving
from test_api_openai_client import script

FOLDER = os.environ.get("ANYCHIP_NODE_FOLDER", "")  # where `npm install openai` was run


@pytest.mark.skipif(not (shutil.which("node") and FOLDER), reason="npm install openai, then ANYCHIP_NODE_FOLDER=folder")
def test_the_node_client_works_unmodified() -> None:
    with serving(ScriptedEngine(script)) as (url, _log):
        found = subprocess.run(["node", Path(__file__).parent / "openai_client.mjs", url, FOLDER], capture_output=True,
                               text=True, timeout=60)
    assert found.returncode == 0 and "all passed" in found.stdout, found.stderr
