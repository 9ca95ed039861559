"""A judge behind any OpenAI-compatible endpoint: one aspect of one record, scored from 0 to 5.

The four aspects and the scale are those of InterleavedBench (arXiv 2406.14643); the wording of the prompts is ours.
"""

import http.client
import json
import logging
import re
import time
import urllib.request
from typing import Any

from moesaic.data.images.pictures import data_url
from moesaic.data.images.records import Interleaved, Judge, Picture
from moesaic.errors import InputError

log = logging.getLogger("moesaic.images")

ASPECTS = {
    "text quality": "Is the text correct, clear and fluent, and does it answer what was asked?",
    "image coherence": "Do the images fit each other in style and in what they show, and does each follow from the one before?",
    "text-image agreement": "Does each image show what the text around it says?",
    "helpfulness": "Taken together, are text and images of use to the person who asked?",
}
WAITS = (1.0, 5.0, 25.0)
"""Seconds before each further attempt."""
SCALE = "Answer with one whole number from 0 (not at all) to 5 (fully), and nothing else."


class Unreadable(InputError):
    """An answer without a score. It concerns one record, any other failure all of them."""


def endpoint(url: str, model: str, key: str = "", timeout: float = 60.0) -> Judge:
    """A judge.

    Args:
        url: base address, to which /chat/completions is added.
        key: sent as a bearer token when it is not empty.

    The judge raises Unreadable: an answer without a number. InputError: the endpoint cannot be reached.
    """

    def judge(aspect: str, record: Interleaved) -> float:
        if aspect not in ASPECTS:
            raise InputError(f"judge: no aspect '{aspect}'; allowed: {', '.join(ASPECTS)}")
        body = {"model": model, "temperature": 0, "max_tokens": 8, "messages": _messages(aspect, record)}
        request = urllib.request.Request(
            url.rstrip("/") + "/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        try:
            text = json.loads(_asked(request, timeout))["choices"][0]["message"]["content"]
        except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"judge: {url} gave no usable answer ({error}); check the address, the model's name and the key"
            ) from error
        number = re.search(r"\d+(?:\.\d+)?", str(text))
        if number is None or not 0 <= float(number[0]) <= 5:
            raise Unreadable(
                f"judge: {model} answered '{str(text)[:60]}' where a number from 0 to 5 was asked for"
            )
        return float(number[0])

    return judge


def _asked(request: urllib.request.Request, timeout: float) -> bytes:
    """The body of the answer; a server that is busy or away is asked again, later each time."""
    for wait in (*WAITS, None):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                body: bytes = answer.read()
                return body
        except (OSError, http.client.HTTPException) as error:
            code = getattr(error, "code", None)
            if wait is None or (code is not None and code != 429 and code < 500):
                raise
            log.warning("judge: %s; asked again in %.0f s", error, wait)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _messages(aspect: str, record: Interleaved) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [
        {"type": "text", "text": f"{ASPECTS[aspect]} {SCALE}\n\nThe conversation:"}
    ]
    for turn in record:
        content.append({"type": "text", "text": f"\n{turn.role}: "})
        for part in turn.parts:
            if isinstance(part, Picture):
                content.append({"type": "image_url", "image_url": {"url": data_url(part.pixels)}})
            else:
                content.append({"type": "text", "text": part})
    return [{"role": "user", "content": content}]
