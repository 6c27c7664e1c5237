"""The faults of a provider, in the order of docs/faults.md; test_fault_matrix.py has each of them
happen to a served gateway.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from tests.providers.contract import END, HANG, RESET, Dialect
from tests.providers.ways import GENERATION, STREAM, WAYS

DRIP = "drip"
"""One more way in which a connection goes on: a byte now and then."""
CONNECTION, ANSWER, STATUS = "Connections", "Answers with status 200", "Other statuses"
OPENAI, GEMINI, COMPATIBLE = "OpenAI", "Gemini", "compatible host"
KSERVE = ("KServe v1", "KServe v2")


@dataclass(frozen=True)
class Fault:
    """One fault, which begins with a call that the vendor would have served.

    `listens`: the way in which the vendor takes connections; `unread` resets each before the
    request's body is read. `words`: the name of an answer in contract.py that is sent with
    `status` in place of the vendor's own. `is_made`: the vendor makes the image and bills it.
    `sent`: the part of the answer that is sent before the connection goes on as `then`. `twists`:
    the stubs' own names for the fault, by vendor. `only`: the vendors that can have it; empty: all
    that have the words. `own_key`: the call is made with a key of the tenant's own.
    `by`: the ways of asking that meet it.
    """

    section: str
    name: str
    listens: Literal["open", "closed", "plain", "untrusted", "unread"] = "open"
    status: int = 200
    words: str = ""
    is_made: bool = True
    sent: Literal["nothing", "head", "half", "whole"] = "whole"
    then: str = END
    encoding: Literal["", "gzip", "damaged gzip"] = ""
    media_type: str = ""
    twists: Mapping[str, str] = field(default_factory=dict)
    only: frozenset[str] = frozenset()
    own_key: bool = False
    by: tuple[str, ...] = (GENERATION,)

    @property
    def is_slow(self) -> bool:
        """True for a fault that takes until a time-out."""
        return self.then in {HANG, DRIP}

    def happens_at(self, title: str, dialect: Dialect) -> bool:
        """Tell if a vendor can have this fault."""
        if self.only:
            return title in self.only
        return self.words in {"", "long", *dialect.answers}


def _unanswered(name: str, sent: Literal["nothing", "head", "half"], then: str = END) -> Fault:
    """A call that is made and billed, and whose answer does not arrive whole."""
    return Fault(CONNECTION, name, sent=sent, then=then)


def _answered(name: str, words: str, *, media_type: str = "", is_made: bool = True) -> Fault:
    return Fault(ANSWER, name, words=words, media_type=media_type, is_made=is_made)


def _refused(name: str, status: int, words: str, *only: str) -> Fault:
    """A call that the vendor refuses and does not bill."""
    return Fault(STATUS, name, status=status, words=words, is_made=False, only=frozenset(only))


def _with_either_key(fault: Fault) -> tuple[Fault, Fault]:
    """The fault of a call with the operator's key, and of one with a key of the tenant's own."""
    return (
        replace(fault, name=f"{fault.name}, the operator's key"),
        replace(fault, name=f"{fault.name}, the tenant's own key", own_key=True),
    )


def _failed(name: str, status: int, words: str = "invalid", *only: str) -> Fault:
    """A call that the vendor bills, and answers with an error."""
    return Fault(STATUS, name, status=status, words=words, only=frozenset(only))


def _twisted(section: str, name: str, **twists: str) -> Fault:
    """A fault that stubs know themselves; those of `kserve` are the same in both protocols."""
    titles = {"openai": (OPENAI,), "gemini": (GEMINI,), "kserve": KSERVE}
    named = {title: twist for vendor, twist in twists.items() for title in titles[vendor]}
    return Fault(section, name, twists=named, only=frozenset(named))


ERROR_EVENT = "an error event after a partial image"
MET_BY_ALL = frozenset(
    {
        "connection refused",
        "reset before the request's body is read",
        "reset after the request",
        "no answer in time",
        "reset within the answer's body",
        "closed within the answer's body",
        "silence within the answer's body",
        "reset after the whole answer",
        "compressed with gzip",
        "labelled with another content type",
        "a page of HTML",
        "JSON of another kind",
        "no image and no usage",
        "longer than the limit",
        "an image without its usage",
        "words instead of an image",
        "a refusal of the prompt",
        "a refusal of the image",
        "400",
        "413",
        "400: a refused prompt",
        "401, the operator's key",
        "429 with a delay",
        "503: the model is not ready",
        "500",
    }
)
"""The faults that edits, streams and calls by MCP meet as well: they read answers in other ways."""
_FAULTS = (
    Fault(CONNECTION, "connection refused", listens="closed"),
    Fault(CONNECTION, "no TLS at an https address", listens="plain"),
    Fault(CONNECTION, "a certificate that is not trusted", listens="untrusted"),
    Fault(CONNECTION, "reset before the request's body is read", listens="unread"),
    _unanswered("reset after the request", "nothing", RESET),
    _unanswered("closed after the request", "nothing"),
    _unanswered("no answer in time", "nothing", HANG),
    _unanswered("reset after the answer's headers", "head", RESET),
    _unanswered("reset within the answer's body", "half", RESET),
    _unanswered("closed within the answer's body", "half"),
    _unanswered("silence within the answer's body", "half", HANG),
    _unanswered("a body that drips and does not end in time", "half", DRIP),
    Fault(CONNECTION, "reset after the whole answer", then=RESET),
    Fault(ANSWER, "compressed with gzip", encoding="gzip"),
    Fault(ANSWER, "labelled with another content type", media_type="text/html"),
    Fault(ANSWER, "compressed and damaged", encoding="damaged gzip"),
    _answered("a page of HTML", "html", media_type="text/html"),
    _answered("JSON of another kind", "other"),
    _answered("no image and no usage", "empty"),
    _answered("longer than the limit", "long"),
    _twisted(ANSWER, "an image without its usage", openai="usage_missing", gemini="no_usage"),
    _twisted(ANSWER, "words instead of an image", gemini="text_only", kserve="no_image"),
    _twisted(ANSWER, "a refusal of the prompt", gemini="refused_prompt"),
    _twisted(ANSWER, "a refusal of the image", gemini="refused_image"),
    _twisted(ANSWER, "a refusal of the account", gemini="limited"),
    replace(_twisted(ANSWER, ERROR_EVENT, openai="stream_error"), by=(STREAM,)),
    _refused("400", 400, "invalid"),
    _refused("413", 413, "invalid"),
    _refused("422: a failed validation", 422, "invalid", *KSERVE, COMPATIBLE),
    _refused("400: a refused prompt", 400, "refusal", OPENAI, COMPATIBLE),
    _twisted(STATUS, "400: an invalid key", gemini="key_invalid"),
    _twisted(STATUS, "400: the account's region or billing", gemini="precondition"),
    *_with_either_key(_refused("401", 401, "credential")),
    *_with_either_key(_refused("403", 403, "denied")),
    *_with_either_key(_refused("404", 404, "model")),
    *_with_either_key(_refused("429: out of credit", 429, "quota")),
    _refused("429 with a delay", 429, "limited"),
    _refused("429 without a delay", 429, "invalid"),
    _twisted(STATUS, "503: the model is not ready", kserve="not_ready"),
    _failed("302", 302),
    _failed("402", 402),
    _failed("405", 405),
    _failed("408", 408),
    _failed("409", 409),
    _failed("415", 415),
    _failed("422", 422, "invalid", OPENAI, GEMINI),
    _failed("500", 500),
    _failed("502", 502),
    _failed("503", 503),
    _failed("504", 504),
    *(_failed(f"{status} as a page of HTML", status, "html") for status in (400, 403, 429, 502)),
)
FAULTS = tuple(replace(one, by=WAYS) if one.name in MET_BY_ALL else one for one in _FAULTS)
