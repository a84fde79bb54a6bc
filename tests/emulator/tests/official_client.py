"""Google's own Python client, unmodified, against the emulator. Run by official_client.rs.

Usage: official_client.py EMULATOR_URL SERVICE_ACCOUNT_JSON AUTHORIZED_USER_JSON

Every check prints `ok <name>` and the last line is `all ok`; anything else is a failure.
"""

import json
import sys
import urllib.request

import google.auth.exceptions
import google.auth.transport.requests
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account
from googleapiclient.discovery import build, build_from_document
from googleapiclient.errors import HttpError

SCOPES = ["https://www.googleapis.com/auth/webmasters.readonly"]
ALPHA = "sc-domain:alpha.example"
LARGE = "sc-domain:large.example"
DAY = "2026-02-10"
PAGE_ROWS = 25_000
RETRIES = 3

URL, ACCOUNT_FILE, USER_FILE = sys.argv[1:4]


def emulator(path, body=None):
    """Asks or tells the emulator something through its admin endpoints."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{URL}/__emu/{path}", data=data)) as answer:
        return json.load(answer)


def client(credentials):
    return build(
        "searchconsole",
        "v1",
        credentials=credentials,
        client_options={"api_endpoint": URL},
        static_discovery=True,
    )


def account():
    return service_account.Credentials.from_service_account_file(ACCOUNT_FILE, scopes=SCOPES)


def query(service, site=ALPHA, **body):
    return service.searchanalytics().query(siteUrl=site, body={"startDate": DAY, "endDate": DAY, **body})


def error_of(request, **arguments):
    try:
        request.execute(**arguments)
    except HttpError as error:
        return error
    raise AssertionError("the request should have failed")


def check_sites(service):
    entries = service.sites().list().execute()["siteEntry"]
    levels = {entry["siteUrl"]: entry["permissionLevel"] for entry in entries}
    assert levels[ALPHA] == "siteOwner", levels
    assert levels["https://unverified.example/"] == "siteUnverifiedUser", levels
    assert service.sites().get(siteUrl="https://gamma.example/shop/").execute()["siteUrl"].endswith("/shop/")


def check_paging(service):
    rows, pages = [], 0
    while True:
        dimensions = ["page", "query", "country", "device"]
        body = {"dimensions": dimensions, "rowLimit": PAGE_ROWS, "startRow": pages * PAGE_ROWS}
        answer = query(service, LARGE, **body).execute()
        if "rows" not in answer:
            break
        rows += answer["rows"]
        pages += 1
    assert (pages, len(rows)) == (2, 50_000), (pages, len(rows))
    assert len({tuple(row["keys"]) for row in rows}) == len(rows)
    clicks = [row["clicks"] for row in rows]
    assert clicks == sorted(clicks, reverse=True)


def check_errors(service):
    error = error_of(query(service, "https://unverified.example/"))
    assert error.resp.status == 403, error
    assert error.reason.startswith("User does not have sufficient permission"), error.reason
    assert error.error_details[0]["reason"] == "forbidden", error.error_details
    error = error_of(query(service, rowLimit=25_001))
    assert error.resp.status == 400, error
    assert error.error_details[0]["domain"] == "global", error.error_details
    error = error_of(query(service, dimensions=["date", "searchAppearance"]))
    assert "search appearance dimension" in error.reason, error.reason


def attempts(service, change):
    """How often the client tries, and the status it ends with, while the emulator is set up like this."""
    emulator("reset", {})
    emulator("config", change)
    request = query(service)
    # The pauses between the tries are the client's affair, their number is ours.
    request._sleep = lambda _: None
    status = error_of(request, num_retries=RETRIES).resp.status
    emulator("config", {"faults": [], "qpm_project": 0})
    return status, emulator("stats")["by_endpoint"]["searchanalytics.query"]


def check_retries(service):
    # The API's own quota error is one that its own client does not retry.
    assert attempts(service, {"faults": [{"kind": "403rate"}]}) == (403, 1)
    assert attempts(service, {"faults": [{"kind": "403load"}]}) == (403, 1)
    assert attempts(service, {"faults": [{"kind": "429"}]}) == (429, 1 + RETRIES)
    assert attempts(service, {"faults": [{"kind": "503"}]}) == (503, 1 + RETRIES)
    # The second query of the minute runs into 403 rateLimitExceeded, as do its retries.
    emulator("reset", {})
    emulator("config", {"qpm_project": 1})
    query(service).execute()
    request = query(service)
    request._sleep = lambda _: None
    error = error_of(request, num_retries=RETRIES)
    assert error.error_details[0]["reason"] == "rateLimitExceeded", error.error_details
    assert emulator("stats")["by_endpoint"]["searchanalytics.query"] == 1 + 1 + RETRIES
    emulator("config", {"qpm_project": 0})


def check_batch(credentials):
    # `api_endpoint` does not move batches, so the client is built from the emulator's own document.
    with urllib.request.urlopen(f"{URL}/$discovery/rest?version=v1") as answer:
        service = build_from_document(answer.read(), credentials=credentials)
    emulator("reset", {})
    answers = {}

    def keep(request_id, response, exception):
        answers[request_id] = (response, exception)

    batch = service.new_batch_http_request(callback=keep)
    for day in range(1, 5):
        date = f"2026-02-0{day}"
        body = {"startDate": date, "endDate": date, "dimensions": ["date"]}
        batch.add(service.searchanalytics().query(siteUrl=ALPHA, body=body), request_id=date)
    batch.add(query(service, "https://unverified.example/"), request_id="forbidden")
    batch.execute()
    assert len(answers) == 5, answers
    assert isinstance(answers.pop("forbidden")[1], HttpError)
    for date, (response, exception) in answers.items():
        assert exception is None, exception
        assert response["rows"][0]["keys"] == [date], response
    assert emulator("stats")["batch_parts"] == 5
    assert service.sitemaps().list(siteUrl="https://beta.example/").execute() is not None
    body = {"inspectionUrl": "https://beta.example/p/1", "siteUrl": "https://beta.example/"}
    result = service.urlInspection().index().inspect(body=body).execute()["inspectionResult"]
    assert result["indexStatusResult"]["verdict"] in ("PASS", "NEUTRAL"), result


def user(**change):
    """The OAuth user. Read by hand: `from_authorized_user_file` ignores the file's own `token_uri`."""
    with open(USER_FILE, encoding="utf-8") as file:
        info = {**json.load(file), **change}
    names = ("refresh_token", "token_uri", "client_id", "client_secret")
    return user_credentials.Credentials(token=None, **{name: info[name] for name in names})


def check_refresh():
    credentials = user()
    entries = client(credentials).sites().list().execute()["siteEntry"]
    assert entries and credentials.token.startswith("ya29.emu-")


def check_revoked():
    credentials = user(refresh_token="revoked")
    try:
        credentials.refresh(google.auth.transport.requests.Request())
    except google.auth.exceptions.RefreshError as error:
        assert "Token has been expired or revoked." in str(error), error
        return
    raise AssertionError("a revoked refresh token should not work")


def check_expired_token(service):
    # The client answers a 401 with one refresh and one more try.
    emulator("reset", {})
    emulator("config", {"faults": [{"kind": "token_expired_early"}]})
    assert query(service).execute()["responseAggregationType"] == "byProperty"
    emulator("config", {"faults": []})
    stats = emulator("stats")
    assert (stats["tokens"], stats["by_status"]["401"]) == (1, 1), stats


def main():
    credentials = account()
    service = client(credentials)
    checks = {
        "sites": lambda: check_sites(service),
        "paging": lambda: check_paging(service),
        "errors": lambda: check_errors(service),
        "retries": lambda: check_retries(service),
        "batch": lambda: check_batch(credentials),
        "expired token": lambda: check_expired_token(service),
        "refresh token": check_refresh,
        "revoked token": check_revoked,
    }
    for name, check in checks.items():
        check()
        print(f"ok {name}", flush=True)
    print("all ok")


if __name__ == "__main__":
    main()
