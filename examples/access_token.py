"""An API access token in, a current token of one organization out; alone, or for a fleet."""

import contextlib
import os
from datetime import timedelta

from koyeb_session import AccessTokenCredentials, SessionClient
from koyeb_session.testing import FakeClock, FakeKoyeb


def act(session: SessionClient) -> str:
    """Use the API; the token is issued when it is needed, and replaced before it expires."""
    organization = session.http.get("/v1/account/organization").raise_for_status().json()
    return f"acting in the organization {organization['organization']['id']}"


with contextlib.ExitStack() as stack:
    clock, fake, where = None, None, "https://app.koyeb.com"
    if "KOYEB_TOKEN" in os.environ and "KOYEB_ORGANIZATION" in os.environ:
        api_token, organization_id = os.environ["KOYEB_TOKEN"], os.environ["KOYEB_ORGANIZATION"]
    else:
        clock = FakeClock()
        fake = FakeKoyeb(clock=clock)
        where = stack.enter_context(fake.serve())
        api_token, organization_id = fake.issue_api_token(), fake.organizations["me@example.com"][1]
        print(f"Without KOYEB_TOKEN and KOYEB_ORGANIZATION, this plays on a fake Koyeb at {where}.")

    me = AccessTokenCredentials(api_token, organization_id, validity=timedelta(hours=1))
    # With store=FileTokenStore() a machine shares one token, with RedisTokenStore(...) a fleet.
    session = stack.enter_context(SessionClient(base_url=where, credentials=me, clock=clock))
    print(f"At first: {act(session)}.")
    if clock is not None and fake is not None:
        for _ in range(24):
            clock.advance(timedelta(minutes=59, seconds=30))
            act(session)
        issued = [r.operation for r in fake.requests].count("create_access_token")
        print(f"A day later: {act(session)}.")
        print(f"It took {issued} tokens of an hour each; the API access token issued them all.")
