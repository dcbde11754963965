"""The login form: plain HTML, so that it needs no script."""

FORM = """<form method="post" action="/login" class="hp-login">
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button type="submit">Log in</button>
</form>"""
OFF = "<p>Nobody can log in here: <code>HAYPILE_CONSOLE__TOKEN</code> is not set where the console runs.</p>"


def html(*, possible: bool, problem: str = "") -> str:
    """The page. `problem` is text of ours."""
    said = f'<p class="hp-problem" role="alert">{problem}</p>' if problem else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>haypile: log in</title><link rel="stylesheet" href="/style.css"></head>
<body class="hp-login-page"><main class="hp-card">
<h1>haypile</h1>
<p>Looking needs no login. Changing something does.</p>
{said}{FORM if possible else OFF}
<p><a href="/">Back</a></p>
</main></body></html>"""
