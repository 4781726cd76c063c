"""A mail server for one test: `starttls`, `tls` or `plain`. It prints its port, then each mail it took as a line of JSON."""

import asyncio, email, email.policy, json, os, ssl, sys

from aiosmtpd.smtp import SMTP, AuthResult

mode, certificate, key = sys.argv[1:4]


class Handler:
    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        print(json.dumps({
            "encrypted": mode == "tls" or session.ssl is not None,
            "user": session.auth_data,
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": {name.lower(): str(value) for name, value in mail.items()},
            "text": mail.get_content(),
        }), flush=True)
        return "250 Taken"


def authenticate(server, session, envelope, mechanism, data):
    if (data.login, data.password) == (b"robot", os.environb[b"PASSWORD"]):
        return AuthResult(success=True, auth_data="robot")
    # As talkative as a server can be.
    return AuthResult(success=False, handled=False, message="535 5.7.8 Not the password: " + data.password.decode())


async def main():
    context = None
    if mode != "plain":
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    options = {"authenticator": authenticate, "auth_required": mode != "plain", "auth_require_tls": mode == "starttls"}
    if mode == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Handler(), **options), "127.0.0.1", 0, ssl=context if mode == "tls" else None
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
