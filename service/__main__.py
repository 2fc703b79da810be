"""Run the server: `python -m service`."""

import gc
import logging
import sys

from pydantic import ValidationError

from service.app import create_app
from service.banner import print_where_to_click
from service.memory import bound_freed_memory
from service.server import Server
from service.settings import Settings
from service.supervisor import supervise


def main() -> None:
    """Serve until a signal ends it."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            name = "".join(f"PTHETA_{part}: ".upper() for part in problem["loc"])
            print(name + problem["msg"].removeprefix("Value error, "), file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn.error").name = "server"
    # Requests make little garbage in cycles: looking for it less often spares some per cent.
    gc.set_threshold(20_000, 20, 50)
    bound_freed_memory()
    try:
        status = supervise(settings) if settings.num_processes > 1 else _serve_alone(settings)
    except OSError as error:
        print(
            f"cannot serve at {settings.host}:{settings.port}: {error}; PTHETA_PORT and "
            "PTHETA_HOST choose another place",
            file=sys.stderr,
        )
        status = 1
    sys.exit(status)


def _serve_alone(settings: Settings) -> int:
    server = Server(
        create_app(settings),
        settings,
        on_listening=lambda port: print_where_to_click(settings, port),
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    main()
