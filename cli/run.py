"""`orders run`: one worker with the bundled order history, for a first look."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import click

from cli.importing import stream_history
from cli.order_history import OrderHistory
from engine.cli import Failure, WorkerClient, client_for, echo, example, path_of, settings_from, steps, worker_options
from streams.settings import Settings, shop_settings

DECLINED_SHARE = 0.02
SAMPLE_PRICE_DECIMALS = 3  # the bundled orders have prices such as 0.001 GBP
SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "online-retail-sample.csv.gz"


@click.command(epilog=example("orders run", "orders run --data-dir /tmp/orders --web-port 8080"))
@worker_options
@click.option("--file", type=click.Path(path_type=Path), default=SAMPLE, help="another file of order history")
def run(file: Path, **options: Any) -> None:
    """Run one worker, stream the bundled real orders through it, and stay up until Ctrl-C.

    A second start finds the data of the first, and the orders in it.
    """
    options["log_level"] = options["log_level"] or "WARNING"  # the progress bar and the summary are what is to be seen
    settings = for_a_first_look(shop_settings(settings_from(**options)))
    from engine.cli import configure_logging, run_in_loop

    configure_logging(settings)
    echo(f"Starting a worker on {settings.broker}" + _where(settings) + " ...", err=True)
    if settings.payment_decline and not settings.payment_url and settings.saga != "none":
        share = f"{settings.payment_decline:.2%}".replace(".00%", "%")
        echo(f"The simulated payment gateway declines {share} of all cards (ORDERS_PAYMENT_DECLINE).", err=True)
    status = run_in_loop(_run(settings, file))
    if status == 0:
        kept = "" if settings.transport == "memory" else " The data is kept; the next start finds it."
        echo(f"Goodbye.{kept}", err=True)
    raise SystemExit(status)


def for_a_first_look(settings: Settings) -> Settings:
    """Settings that decline some payments, so that failures are seen, and take the prices of the bundled orders.

    What the settings say themselves stays.
    """
    defaults = {"payment_decline": DECLINED_SHARE, "price_decimals": SAMPLE_PRICE_DECIMALS}
    return settings.model_copy(update={k: v for k, v in defaults.items() if k not in settings.model_fields_set})


def _where(settings: Settings) -> str:
    return f" in {settings.data_dir.absolute()}" if settings.transport == "embedded" else ""


async def _run(settings: Settings, file: Path) -> int:
    """A worker in this process, and the import in its loop: one process to start, to watch and to end."""
    from engine.cli import serve
    from streams.app import create_app

    stop = asyncio.Event()
    failures: list[click.ClickException] = []

    async def stream_sample() -> None:
        try:
            async with client_for(settings, None) as client:
                with steps() as progress:
                    report, history = await stream_history(client, file, progress)
                    refunded = await refunded_order(client, history)
        except Failure as failure:
            failures.append(failure)
            stop.set()
            return
        echo(f"\n{report.text()}\n\n{addresses(settings.local_url, history, refunded)}\n")
        echo("The worker stays up; Ctrl-C ends it.", err=True)

    status = await serve(create_app(settings), stop=stop, once_ready=stream_sample)
    for failure in failures:
        failure.show()
    return 1 if failures else status


async def refunded_order(client: WorkerClient, history: OrderHistory) -> str | None:
    """The last order of the file that was cancelled after it was paid; None when there is none."""
    for cancellation in reversed(history.cancellations):
        payment = await client.find(path_of("payments", cancellation.order_id))
        if payment is not None and payment["status"] == "refunded":
            return cancellation.order_id
    return None


def addresses(url: str, history: OrderHistory, refunded: str | None) -> str:
    """Addresses to look at, with an order, a product and a customer that the file really has."""
    rows = [("all of this as a page", "/")]
    cancelled = refunded or next((command.order_id for command in reversed(history.cancellations)), None)
    if cancelled is not None:
        rows.append(("an order that was cancelled", path_of("orders", cancelled)))
        rows.append(("everything that happened to it", path_of("orders", cancelled, "events")))
    if refunded is not None:
        rows.append(("its saga, which was compensated", path_of("sagas", refunded)))
        rows.append(("its payment, which was refunded", path_of("payments", refunded)))
    if history.placements:
        ((customer_id, _),) = Counter(placement.customer_id for placement in history.placements).most_common(1)
        best_seller = max(history.supplies(), key=lambda supply: supply.quantity)
        rows += [
            ("the orders of a customer", path_of("customers", customer_id, "orders")),
            ("the stock of the best seller", path_of("inventory", best_seller.product_id)),
        ]
    rows += [
        ("orders in figures", "/analytics/summary"),
        ("whether it all adds up", "/analytics/reconciliation"),
        ("all tables", "/tables"),
        ("the topics", "/topics"),
        ("figures for Prometheus", "/metrics"),
    ]
    return "Look at:\n" + "\n".join(f"  {text:<34}{url}{path}" for text, path in rows)
