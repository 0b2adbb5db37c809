//! Account check: reports whether an account can place calls. The account's own token may read
//! the account; an API key may not, but it may read calls.

use reqwest::{Client, StatusCode};

use super::wire;
use crate::platform::error::Result;
use crate::telephony::{AccountStatus, CarrierAccount};

/// Checks an account with the request that its credentials allow.
pub(super) async fn check(client: &Client, account: &CarrierAccount) -> Result<AccountStatus> {
    let with_key = account.credentials.username.is_some();
    let url = match with_key {
        true => wire::address(account, &["Calls.json"]),
        false => wire::account_address(account),
    };
    let mut url = url
        .ok_or_else(|| wire::twilio_failure(false, "the trunk's API address cannot hold a path"))?;
    if with_key {
        url.query_pairs_mut().append_pair("PageSize", "1");
    }

    let reply = wire::send_once(wire::authorize(client.get(url), account)).await?;
    match reply.status {
        status if status.is_success() => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            let why = "the carrier does not accept the account with this secret";
            return Ok(AccountStatus::Refused(why.to_owned()));
        }
        _ => return Err(reply.into_error()),
    }

    let record = reply
        .json()
        .ok_or_else(|| wire::twilio_failure(true, "a reply that is not JSON"))?;
    // Lists of calls have no status: credentials that may read them may place them.
    Ok(match wire::text(&record, "status").as_deref() {
        None | Some("active") => AccountStatus::Good,
        Some(status) => {
            AccountStatus::Refused(format!("the carrier says that the account is {status}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake;
    use super::super::fake::{FakeTwilio, ScriptedReply};
    use super::*;

    async fn standing(
        act: ScriptedReply,
        username: Option<&str>,
    ) -> (Result<AccountStatus>, String) {
        let fake = FakeTwilio::start(vec![act]).await;
        let mut account = fake.account();
        account.credentials.username = username.map(str::to_owned);
        let standing = check(&fake::client(), &account).await;
        let line = fake
            .requests()
            .first()
            .map(|request| request.request_line().to_owned());
        (standing, line.unwrap_or_default())
    }

    #[tokio::test]
    async fn an_account_is_good_refused_or_not_known() {
        let sid = fake::ACCOUNT_SID;
        let (good, line) = standing(
            ScriptedReply::Answer(200, "", json!({"status": "active"})),
            None,
        )
        .await;
        assert_eq!(good.unwrap(), AccountStatus::Good);
        assert_eq!(
            line,
            format!("GET /2010-04-01/Accounts/{sid}.json HTTP/1.1")
        );

        let calls = ScriptedReply::Answer(200, "", json!({"calls": []}));
        let (good, line) = standing(calls, Some("SK01")).await;
        assert_eq!(good.unwrap(), AccountStatus::Good);
        let expected = format!("GET /2010-04-01/Accounts/{sid}/Calls.json?PageSize=1 HTTP/1.1");
        assert_eq!(line, expected);

        let closed = ScriptedReply::Answer(200, "", json!({"status": "suspended"}));
        let (refused, _) = standing(closed, None).await;
        assert!(
            matches!(refused.unwrap(), AccountStatus::Refused(why) if why.contains("suspended"))
        );

        for status in [401, 403, 404] {
            let act = ScriptedReply::Answer(status, "", json!({"code": 20003, "message": "no"}));
            let (refused, _) = standing(act, None).await;
            assert!(
                matches!(refused.unwrap(), AccountStatus::Refused(_)),
                "{status}"
            );
        }

        for act in [
            ScriptedReply::Answer(503, "", json!({})),
            ScriptedReply::Drop,
            ScriptedReply::Answer(200, "", json!([])),
        ] {
            let (unknown, _) = standing(act, None).await;
            assert!(unknown.unwrap_err().is_retryable());
        }
    }
}
