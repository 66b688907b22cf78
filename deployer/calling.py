"""JSON over HTTP to a service, with errors that a person can read."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from deployer.errors import DeployerError

ANSWER_SECONDS = 120.0


def call(url: str, body: Any, headers: Mapping[str, str]) -> Any:
    """What is answered to a POST of `body`, or to a GET where it is None; DeployerError for all else."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    # straight to who was named: a proxy of the environment is for other addresses
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise DeployerError(f"{error.code}: {error.read().decode(errors='replace')[:2000]}") from None
    except OSError as error:
        cause = getattr(error, "reason", error)
        raise DeployerError(f"nothing answers at {url}: {getattr(cause, 'strerror', None) or cause}") from None
    except ValueError as error:
        raise DeployerError(f"{url}: {error}") from None
