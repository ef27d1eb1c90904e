"""What goes wrong between here and the hub, each in one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from json import JSONDecodeError

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .. import __version__
from .._reading import first_line
from .address import PREFIX, Address

TOKEN = "log in with `hf auth login`, or set HF_TOKEN"


class UnreachableError(ConnectionError):
    """Raised if the hub gives no answer: without a connection, when it is down, or with HF_HUB_OFFLINE."""


def client() -> HfApi:
    """Return huggingface_hub's client; endpoint, token and cache are its own business."""
    return HfApi(library_name="nnunet-transformers", library_version=__version__)


@contextmanager
def hub_errors(address: Address) -> Iterator[None]:
    """Translate what huggingface_hub raises; put nothing but its calls inside.

    Its errors have several lines, and those of a missing connection are of its HTTP library, which differs between its
    versions.

    Args:
        address: what is read or written, for messages.

    Raises:
        FileNotFoundError: if there is no such repository or revision, or the token does not open it.
        PermissionError: if the hub refuses the token, or there is none.
        UnreachableError: if the hub gives no answer.
        OSError: if the cache cannot be written, or the hub refuses something else.
        ValueError: if the hub does not accept the content.
    """
    place = f"{address.repository} on {client().endpoint}"
    try:
        yield
    except GatedRepoError as error:
        page = f"{client().endpoint}/{address.repository}"
        raise PermissionError(f"{address.repository} is gated: ask for access on {page}, then {TOKEN}") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"there is no repository {place}, or it is private: check the name, or {TOKEN}"
        ) from error
    except RevisionNotFoundError as error:
        order = f"; a revision comes last, as in {PREFIX}owner/name/file@revision" if "/" in address.revision else ""
        raise FileNotFoundError(f"{address.repository} has no revision {address.revision!r}{order}") from error
    except LocalEntryNotFoundError as error:
        # of a download that fails after the list of files was read
        raise UnreachableError(
            f"{client().endpoint} cannot be reached ({first_line(error.__cause__ or error)})"
        ) from error
    except HfHubHTTPError as error:
        raise _refused(error, place) from error
    except OfflineModeIsEnabled as error:
        raise UnreachableError("HF_HUB_OFFLINE is set") from error
    except (JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        # the page of a network that wants a login, for instance
        raise UnreachableError(f"{client().endpoint} does not answer as a hub ({first_line(error)})") from error
    except OSError as error:
        # of files; those of the connection, which requests derives from OSError, have no number
        if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise OSError(f"could not write to the cache {constants.HF_HUB_CACHE}: {first_line(error)}") from error
        raise UnreachableError(f"{client().endpoint} cannot be reached ({first_line(error)})") from error
    except UnicodeEncodeError as error:
        # of the header that holds the token: all else is quoted
        raise PermissionError(
            f"the token for {place} holds {error.object[error.start]!r}, a character that no token has: {TOKEN}"
        ) from error
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:
        # uploads hide the reason in the cause
        cause = error.__cause__ or error
        if isinstance(cause, HfHubHTTPError):
            raise _refused(cause, place) from error
        raise UnreachableError(f"{client().endpoint} cannot be reached ({first_line(cause)})") from error


def _refused(error: HfHubHTTPError, place: str) -> OSError:
    """Return the error for a status of HTTP."""
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())
    reason = f"{status}: {said}" if said else str(status)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return PermissionError(f"no access to {place} ({reason}): check what the token may do, or {TOKEN}")
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS:
        return UnreachableError(f"{place} gives no answer ({reason})")
    return OSError(f"{place} refuses the request ({reason})")


def not_in_cache(address: Address, reason: str) -> str:
    """Return what to do where the hub gives no answer and the cache does not have the files either."""
    url = address.url(client().endpoint)
    what = "the file" if address.path else "the files"
    return (
        f"{reason}, and {address} is not in the cache {constants.HF_HUB_CACHE}: download {what} elsewhere from {url}, "
        f"and give the path of the download in place of {replace(address, revision='main')}"
    )
