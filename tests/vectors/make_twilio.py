"""Writes the Twilio vectors beside this file, with the vendor's own Python SDK as the oracle.

    python3 -m venv /tmp/vectors
    /tmp/vectors/bin/pip install twilio==9.13.0 requests==2.34.2 multidict==7.2.1
    /tmp/vectors/bin/python tests/vectors/make_twilio.py

The output depends on nothing but this file and the pinned packages; running it twice changes
nothing. It makes:

    twilio_signatures.json  callbacks, each with the verdict of the SDK's validator
    twilio_documents.json   answer documents as the SDK's TwiML builder writes them
    twilio_requests.json    REST requests as the SDK sends them, caught before the wire
"""

import json
import pathlib
from urllib.parse import parse_qsl, urlencode, urlsplit

from multidict import MultiDict
from requests.models import RequestEncodingMixin
from twilio.http import HttpClient
from twilio.http.response import Response
from twilio.request_validator import RequestValidator
from twilio.rest import Client
from twilio.twiml.voice_response import Connect, Gather, VoiceResponse

HERE = pathlib.Path(__file__).parent
TOKEN = bytes(range(16)).hex()
OTHER_TOKEN = bytes(range(16, 32)).hex()
ACCOUNT = "AC" + "0" * 31 + "1"
CALL = "CA" + "0" * 31 + "2"
FORM = "application/x-www-form-urlencoded"
BASE = "https://dialer.example.com/callbacks/twilio/0190/secret/status"

STATUS = [
    ("CallSid", CALL),
    ("AccountSid", ACCOUNT),
    ("From", "+15550100001"),
    ("To", "+15550100002"),
    ("CallStatus", "ringing"),
    ("ApiVersion", "2010-04-01"),
    ("Direction", "outbound-api"),
    ("CallbackSource", "call-progress-events"),
    ("SequenceNumber", "1"),
    ("Timestamp", "Wed, 04 Mar 2026 09:30:01 +0000"),
]


def sign(url, pairs=(), token=TOKEN):
    return RequestValidator(token).compute_signature(url, MultiDict(pairs))


def sdk_accepts(case):
    """The verdict of the SDK: any of the secrets may have signed."""
    if case["content_type"] == FORM:
        params = MultiDict(parse_qsl(case["body"], keep_blank_values=True))
    elif case["body"] and "bodySHA256" not in case["url"]:
        # The SDK has no answer to a body that nothing names; it raises.
        return False
    else:
        params = case["body"] or {}
    return any(
        RequestValidator(secret).validate(case["url"], params, case["signature"] or "")
        for secret in case["secrets"]
    )


def signature_cases():
    def case(name, signature, url=BASE, pairs=(), body=None, content_type=FORM, method="POST",
             secrets=(TOKEN,)):
        case = {
            "name": name,
            "method": method,
            "url": url,
            "content_type": content_type,
            "body": urlencode(pairs) if body is None else body,
            "secrets": list(secrets),
            "signature": signature,
        }
        case["accepted"] = sdk_accepts(case)
        return case

    def with_port(url, port):
        return url.replace("dialer.example.com", f"dialer.example.com:{port}")

    good = sign(BASE, STATUS)
    yield case("status callback", good, pairs=STATUS)
    yield case("parameters in another order", good, pairs=STATUS[::-1])
    yield case("no parameters", sign(BASE))
    yield case("no parameters and no content type", sign(BASE), content_type=None)

    repeated = [("b", "2"), ("a", "z"), ("a", "y"), ("a", "z"), ("B", "1")]
    yield case("repeated key with a repeated value", sign(BASE, repeated), pairs=repeated)
    empty = [("CallSid", CALL), ("ForwardedFrom", ""), ("", "nameless")]
    yield case("empty value and empty name", sign(BASE, empty), pairs=empty)
    unicode = [("CallerName", "Zoë 山田 🔔"), ("Ключ", "значение"), ("é", "e\u0301")]
    yield case("unicode names and values", sign(BASE, unicode), pairs=unicode)
    spaces = [("SpeechResult", "yes + no & 100% = a\r\nb"), ("Digits", " 1 ")]
    yield case("reserved characters in values", sign(BASE, spaces), pairs=spaces)

    quoted = BASE + "?a=1+2&b=%2B%20%26&c=100%25&d=x%2Fy"
    yield case("plus and percent in the query", sign(quoted, STATUS), url=quoted, pairs=STATUS)
    query = BASE + "?turn=3&again="
    yield case("query on a post", sign(query, STATUS), url=query, pairs=STATUS)
    yield case("query on a post, not signed", good, url=query, pairs=STATUS)
    yield case("get", sign(query), url=query, content_type=None, method="GET")
    yield case("get with another query", sign(query), url=query + "1", content_type=None,
               method="GET")

    for signed in (None, 443, 8443):
        for arrives in (None, 443, 8443):
            yield case(
                f"signed with port {signed or 'none'}, arrives on port {arrives or 'none'}",
                sign(with_port(BASE, signed) if signed else BASE, STATUS),
                url=with_port(BASE, arrives) if arrives else BASE,
                pairs=STATUS,
            )
    plain = BASE.replace("https", "http")
    yield case("plain http, signed with port 80", sign(with_port(plain, 80), STATUS), url=plain,
               pairs=STATUS)
    yield case("plain http, signed as https", good, url=plain, pairs=STATUS)

    body = json.dumps({"event": "ringing", "näme": "Zoë"}, ensure_ascii=False)
    named = BASE + "?bodySHA256=" + RequestValidator(TOKEN).compute_hash(body)
    yield case("json body", sign(named), url=named, body=body, content_type="application/json")
    yield case("json body, changed", sign(named), url=named, body=body + " ",
               content_type="application/json")
    yield case("json body, hash not signed", sign(BASE), url=named, body=body,
               content_type="application/json")
    yield case("json body without a hash", sign(BASE), body=body, content_type="application/json")
    yield case("form whose url holds a hash", sign(named, STATUS), url=named, pairs=STATUS)

    yield case("wrong key", sign(BASE, STATUS, OTHER_TOKEN), pairs=STATUS)
    yield case("second of two secrets", sign(BASE, STATUS, OTHER_TOKEN), pairs=STATUS,
               secrets=(TOKEN, OTHER_TOKEN))
    yield case("truncated signature", good[:-4], pairs=STATUS)
    yield case("signature without its padding", good.rstrip("="), pairs=STATUS)
    yield case("signature with a tail", good + "A", pairs=STATUS)
    yield case("empty signature", "", pairs=STATUS)
    yield case("no signature", None, pairs=STATUS)
    changed = [(k, "completed" if k == "CallStatus" else v) for k, v in STATUS]
    yield case("changed value", good, pairs=changed)
    yield case("added parameter", good, pairs=STATUS + [("CallDuration", "1")])
    yield case("added value", good, pairs=STATUS + [("CallStatus", "completed")])
    yield case("removed parameter", good, pairs=STATUS[:-1])
    yield case("another call's address", good, url=BASE.replace("0190", "0191"), pairs=STATUS)

    user = BASE.replace("https://", "https://user:pass@")
    yield case("userinfo", sign(user, STATUS), url=user, pairs=STATUS)
    yield case("userinfo, not signed", good, url=user, pairs=STATUS)


def documents():
    doc = VoiceResponse()
    doc.hangup()
    yield "hang up", doc

    doc = VoiceResponse()
    doc.say("Hello there.", language="en-US", voice="Polly.Joanna")
    doc.pause(length=2)
    doc.play("https://cdn.example.com/a.mp3?x=1&y=2")
    yield "say, pause and play", doc

    doc = VoiceResponse()
    gather = Gather(input="speech dtmf", action="https://dialer.example.com/turn?n=1&m=2",
                    method="POST", language="de-DE", timeout=5, speech_timeout="auto",
                    hints="ja,nein,\"vielleicht\"")
    gather.say("Möchten Sie <fortfahren> & \"bleiben\"?", language="de-DE")
    gather.pause(length=1)
    doc.append(gather)
    doc.redirect("https://dialer.example.com/silence?a=1&b=2", method="POST")
    yield "gather, then redirect", doc

    doc = VoiceResponse()
    doc.gather(input="speech dtmf", action="https://dialer.example.com/turn", method="POST",
               language="en-US", timeout=3, speech_timeout="auto")
    yield "gather without hints or prompt", doc

    doc = VoiceResponse()
    doc.say("Leave a message.", language="en-GB")
    doc.record(action="https://dialer.example.com/recorded", method="POST", max_length=90)
    doc.hangup()
    yield "record", doc

    doc = VoiceResponse()
    connect = Connect()
    stream = connect.stream(url="wss://media.example.com/socket")
    stream.parameter(name="call", value="0190")
    stream.parameter(name="näme", value="Zoë \"Z\" <&>\n'end'")
    doc.append(connect)
    yield "stream", doc

    doc = VoiceResponse()
    doc.say("山田さん 🔔 'quoted' \"twice\" a < b > c && d ]]> é", language="ja-JP")
    yield "escaping", doc


class Catcher(HttpClient):
    """Stands in for the SDK's HTTP client; keeps the request instead of sending it."""

    def __init__(self):
        super().__init__(None, False, None)
        self.caught = None

    def request(self, method, url, params=None, data=None, headers=None, auth=None,
                timeout=None, allow_redirects=False):
        def pairs(fields):
            encoded = RequestEncodingMixin._encode_params(fields or {})
            return parse_qsl(encoded, keep_blank_values=True)

        self.caught = {
            "method": method.upper(),
            "url": url,
            "auth": list(auth),
            "query": pairs(params) + parse_qsl(urlsplit(url).query),
            "form": pairs(data),
        }
        record = {"sid": CALL, "account_sid": ACCOUNT, "status": "queued"}
        body = {"calls": []} if method.upper() == "GET" else record
        return Response(200, json.dumps(body))


def requests():
    def catch(act):
        catcher = Catcher()
        act(Client(ACCOUNT, TOKEN, http_client=catcher).calls)
        return catcher.caught

    fragment = "#rc=5&rp=all"
    dial = {
        "to": "+15550100002",
        "from_": "+15550100001",
        "url": "https://dialer.example.com/answer?x=1&y=2" + fragment,
        "method": "POST",
        "status_callback": "https://dialer.example.com/status" + fragment,
        "status_callback_method": "POST",
        "status_callback_event": ["initiated", "ringing", "answered", "completed"],
        "timeout": 30,
        "time_limit": 180,
    }
    detection = {
        "machine_detection": "Enable",
        "async_amd": "true",
        "async_amd_status_callback": "https://dialer.example.com/amd" + fragment,
        "async_amd_status_callback_method": "POST",
    }
    recording = {
        "record": True,
        "recording_status_callback": "https://dialer.example.com/recording" + fragment,
        "recording_status_callback_method": "POST",
        "recording_status_callback_event": ["completed"],
    }
    yield "create", catch(lambda calls: calls.create(**dial))
    yield "create with everything", catch(
        lambda calls: calls.create(**dial, **detection, **recording))
    yield "search", catch(lambda calls: calls.page(
        to="+15550100002", from_="+15550100001", page_size=1000))
    yield "cancel", catch(lambda calls: calls(CALL).update(status="canceled"))
    yield "hang up", catch(lambda calls: calls(CALL).update(status="completed"))


def write(name, content):
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (HERE / name).write_text(text + "\n", encoding="utf-8")
    print(f"{name}: {len(content)} cases")


write("twilio_signatures.json", list(signature_cases()))
write("twilio_documents.json", [{"name": n, "xml": str(d)} for n, d in documents()])
write("twilio_requests.json", [{"name": n, **r} for n, r in requests()])
