"""Explain why the hub's client could not fetch or send something, and what to do about it."""

from pathlib import Path

from huggingface_hub import constants

from posttrain.files import NO_ROOM

# {class of an error: what has happened and what to do}. The first class that occurs among an error
# and its causes decides, so that a class stands before those that it is derived from. The classes
# are named, since those of the connection belong to the library that the client is built on.
REASONS = {
    "HFValidationError": "There is no such folder, and a name on the hub cannot look like this.",
    "GatedRepoError": (
        "It is gated: ask for access on its page, then log in with `hf auth login` or set HF_TOKEN."
    ),
    "DisabledRepoError": "The hub has disabled access to it for everybody. Name another one.",
    "RepositoryNotFoundError": (
        "There is no folder of this name, and on the hub it does not exist or is private. Check "
        "the spelling. If it is private, log in with `hf auth login` or set HF_TOKEN."
    ),
    "RevisionNotFoundError": (
        "The commit that this run began with is gone from the hub. Set FRESH = True to begin again "
        "with the newest commit."
    ),
    "OfflineModeIsEnabled": (
        "HF_HUB_OFFLINE forbids asking the hub. Run once without HF_HUB_OFFLINE and with a network "
        "to download it, or name a folder."
    ),
    "ProxyError": (
        "The proxy between this computer and the hub refused the connection. Correct its address "
        "in HTTPS_PROXY, with the user and password if it asks for them "
        "(http://user:password@host:port), or unset HTTPS_PROXY where no proxy is needed."
    ),
    "SSLCertVerificationError": (
        "The certificate of {endpoint} is not trusted by this computer, so the connection was not "
        "made. Usually a proxy or a virus scanner puts its own certificate in place of the hub's: "
        "save the certificate of its authority as a PEM file and set SSL_CERT_FILE to that file. "
        "Check also that the clock of this computer is right."
    ),
    "SSLError": (
        "No encrypted connection to {endpoint} could be made. Check HF_ENDPOINT and HTTPS_PROXY "
        "where they are set, and try in another network."
    ),
    "gaierror": (
        "The address of {endpoint} was not found (DNS). Check that there is a network connection, "
        "and the spelling of HF_ENDPOINT and HTTPS_PROXY where they are set."
    ),
    "TimeoutException": (
        "{endpoint} did not answer in time. Try again later. On a slow connection set "
        "HF_HUB_DOWNLOAD_TIMEOUT to more seconds."
    ),
    "ConnectError": (
        "{endpoint} cannot be reached. Check that there is a network connection and, if "
        "HTTPS_PROXY is set, that its proxy works."
    ),
    "TransportError": "The connection to {endpoint} broke off. Try again to download the rest.",
}
# What the client meets if something else answers in the hub's place
NO_ANSWER_OF_THE_HUB = ("JSONDecodeError", "FileMetadataError", "TooManyRedirects")
ANOTHER_ANSWERS = (
    "What answers at {endpoint} is not the hub. Usually it is the login page of a network: open "
    "any page in a browser, log into the network, and try again. If HF_ENDPOINT is set, check its "
    "address. What is in the cache can be used meanwhile with HF_HUB_OFFLINE=1."
)
# {status of the hub's answer: what has happened and what to do}
STATUSES = {
    401: (
        "The hub does not accept the login of this computer: its access token is wrong, has "
        "expired or is missing. Log in again with `hf auth login`, and unset HF_TOKEN if it is "
        "set, since it counts before the login. Public models and datasets need no token."
    ),
    403: (
        "The hub, or a filter in the network, forbids access to it. Open its page in a browser: if "
        "you may see it there when you are logged in, give your token the right to read it in the "
        "hub's settings, or log in with another token (`hf auth login`)."
    ),
    407: REASONS["ProxyError"],
    408: REASONS["TimeoutException"],
    429: (
        "The hub has received too many requests from this computer or network. Wait some minutes "
        "and try again. With a login (`hf auth login`) more requests are allowed."
    ),
}


# What is said in place of these where something was to be sent
REASONS_OF_UPLOADS = {
    "TimeoutException": "{endpoint} did not answer in time. Try again later.",
    "TransportError": "The connection to {endpoint} broke off.",
}
STATUSES_OF_UPLOADS = {
    401: (
        "The hub does not accept the login of this computer. Log in with a token that has the "
        "right to write (`hf auth login`), and unset HF_TOKEN if it is set."
    ),
    403: (
        "The hub forbids it. Check that the user or organisation in the name is yours, and that "
        "your access token has the right to write (in the hub's settings)."
    ),
    404: "The hub knows no such repository, or no such user or organisation. Check the name.",
    409: (
        "A repository of this name exists, which this login may not see, or somebody else is "
        "changing it. Choose another name, or try again."
    ),
    412: "Somebody else has changed the repository in the meantime. Look at it, and try again.",
}


def explain(error: Exception, uploading: bool = False) -> str:
    """Explain an error of the hub's client, from the error itself or from what caused it.

    Args:
        error: an error that a function of `huggingface_hub` raised.
        uploading: whether something was to be sent, and not fetched.

    Returns:
        Sentences that say what happened and what to do.
    """
    causes = _list_causes(error)
    refusal = _explain_refused_upload(causes) if uploading else None
    if refusal is not None:
        return refusal
    kinds = set()
    for cause in causes:
        kinds.update(kind.__name__ for kind in type(cause).__mro__)
    if "IncompleteSnapshotError" in kinds:
        place = f"Only a part of it is in {error.snapshot_path}. "
    elif "LocalEntryNotFoundError" in kinds:
        place = f"It is not in the cache, {constants.HF_HUB_CACHE}. "
    else:
        place = ""
    reasons, done = REASONS, "downloaded"
    if uploading:
        reasons, done = REASONS | REASONS_OF_UPLOADS, "sent"
    reason = _find_reason(causes, kinds, reasons, done)
    return place + reason.replace("{endpoint}", constants.ENDPOINT)


def _explain_refused_upload(causes: list[BaseException]) -> str | None:
    """Explain an answer with which the hub refuses an upload, in its own words too."""
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        is_refusal = status is not None and 400 <= status < 500
        if status in STATUSES_OF_UPLOADS or (is_refusal and status not in STATUSES):
            otherwise = f"The hub refused it with the status {status}."
            said = getattr(cause, "server_message", None)
            reason = STATUSES_OF_UPLOADS.get(status, otherwise)
            return f"{reason} It says: {said}" if said else reason
    return None


def _list_causes(error: BaseException | None) -> list[BaseException]:
    """List an error, its cause, the cause of that, and so on."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _find_reason(
    causes: list[BaseException], kinds: set[str], reasons: dict[str, str], done: str
) -> str:
    """Find the sentences about what happened, in which {endpoint} is the hub's address."""
    status = None
    for cause in causes:
        if NO_ROOM.search(str(cause)):
            return (
                f"There is no room left on the disk of the cache, {constants.HF_HUB_CACHE}. Free "
                "some space, or set HF_HUB_CACHE to a folder on a larger disk, and try again."
            )
        if isinstance(cause, OSError) and cause.filename is not None:
            return _explain_file_error(cause)
        response = getattr(cause, "response", None)
        if response is not None and "X-Error-Code" not in response.headers:
            status = response.status_code
    # The client takes some tokens that have expired for a repository that does not exist.
    if status == 401:
        return STATUSES[401]
    for kind, reason in reasons.items():
        if kind in kinds:
            return reason
    if kinds.intersection(NO_ANSWER_OF_THE_HUB):
        return ANOTHER_ANSWERS
    if status is not None:
        return _explain_status(status)
    return f"It could not be {done} ({causes[-1]}). Try again."


def _explain_file_error(error: OSError) -> str:
    """Explain an error of the file system, about the cache or about the folder that is named."""
    reason = f"{error.strerror}: {error.filename}"
    if not Path(error.filename).is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
        return f"It cannot be read ({reason}). Check the name and the permissions."
    return (
        f"The cache, {constants.HF_HUB_CACHE}, cannot be used ({reason}). Set HF_HUB_CACHE to a "
        "folder that you may write to, or correct the permissions."
    )


def _explain_status(status: int) -> str:
    """Explain an answer of the hub that gives no reason but its status."""
    if status >= 500:
        return (
            f"The hub has a fault at the moment (status {status}). Try again later; "
            "https://status.huggingface.co says how the hub is."
        )
    return STATUSES.get(status, f"The answer has the status {status}. {ANOTHER_ANSWERS}")
