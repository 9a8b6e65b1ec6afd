"""All models of an author or of a collection, as the Hugging Face Hub lists them."""

from collections.abc import Callable

import httpx2
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mother.errors import InputError


def _ask_hub(what: str, ask: Callable[[], list[str]]) -> list[str]:
    """Names of repositories that the Hub lists, as arguments; raises InputError."""
    try:
        found = ask()
    except HfHubHTTPError as error:
        raise InputError(f"the Hub does not know {what} (HTTP {error.response.status_code}). Check the name.") from None
    except (HFValidationError, ValueError, OSError, httpx2.HTTPError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].split("?")[0]
        raise InputError(f"the Hub cannot be asked for {what}: {reason}. Check the network, and try again.") from None
    if not found:
        raise InputError(f"the Hub lists no model of {what}. Check the name.")
    return [f"hf://{name}" for name in found]


def models_of_author(author: str) -> list[str]:
    """All repositories of an author or organisation that the Hub lists; raises InputError."""
    return _ask_hub(
        f"the author {author!r}",
        lambda: sorted(one.id for one in HfApi(endpoint=constants.ENDPOINT).list_models(author=author)),
    )


def models_of_collection(slug: str) -> list[str]:
    """The models of a collection of the Hub, in its order; raises InputError."""
    return _ask_hub(
        f"the collection {slug!r}",
        lambda: [
            item.item_id
            for item in HfApi(endpoint=constants.ENDPOINT).get_collection(slug).items
            if item.item_type == "model"
        ],
    )
