"""What the server says on the terminal once it can be reached."""

from service.settings import Settings

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def print_where_to_click(settings: Settings, port: int) -> None:
    """Print addresses to open.

    Args:
        settings: What the operator chose.
        port: Where the server listens, also where the operator left it open.
    """
    host = _EVERY_ADDRESS.get(settings.host, settings.host)
    base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    lines = (
        f"ptheta serves {settings.model_store} at {base}",
        f"  {base}/              the models, to play with",
        f"  {base}/docs          every route, to try out",
        f"  {base}/sample?n=64   a picture",
        f"  {base}/models        what is served",
    )
    print("\n".join(lines), flush=True)
