"""Stock's part: lines of a placed order are reserved, those of a cancelled one released until they are."""

from collections.abc import Iterable

from msgspec.structs import replace

from agents.choreography.asking import ask, choreographed
from domain.orders import Order
from domain.sagas.machine import Policy, backoff_ms
from engine import Envelope, Metadata, Service, Timer, UnitOfWork
from streams.events.inventory import ReleaseStock, ReserveStock, StockReleased, StockReleaseFailed
from streams.events.orders import OrderCancelled, OrderPlaced
from streams.events.sagas import ResumeSaga
from streams.settings import shop_settings
from streams.topics import INVENTORY_COMMANDS
from tables.sagas.choreography import RELEASES, Releases

TIMER = "choreographed-release"

service = Service("choreographed-stock", tables=(RELEASES,), topics=(INVENTORY_COMMANDS,))


@service.reaction(OrderPlaced)
def reserve(placed: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Reserve every line."""
    if placed.payload.saga != "choreography":
        return
    origin = _follows(placed)
    for line, item in enumerate(placed.payload.items, start=1):
        command = ReserveStock(item.product_id, placed.payload.order_id, item.quantity, line)
        ask(work, INVENTORY_COMMANDS, command, origin, placed.timestamp, f"reserve:{line}")


@service.reaction(OrderCancelled)
def release(cancelled: Envelope[OrderCancelled], work: UnitOfWork) -> None:
    """Release every line; where none was reserved, none will be."""
    order = choreographed(cancelled.payload.order_id, work)
    if order is None:
        return
    _release(order, Releases(_follows(cancelled), {}), range(1, len(order.items) + 1), work)


@service.reaction(StockReleased)
def forget(released: Envelope[StockReleased], work: UnitOfWork) -> None:
    """A line that was refused before is released now."""
    releases = work.get(RELEASES, released.payload.order_id)
    if releases is not None and released.payload.line in releases.refused:
        refused = {line: times for line, times in releases.refused.items() if line != released.payload.line}
        work.put(RELEASES, released.payload.order_id, replace(releases, refused=refused))


@service.reaction(StockReleaseFailed)
def try_again_later(failed: Envelope[StockReleaseFailed], work: UnitOfWork) -> None:
    """Release a refused line again after a pause, a few times; then it waits for somebody who resumes the saga."""
    order_id, line = failed.payload.order_id, failed.payload.line
    releases = work.get(RELEASES, order_id)
    if releases is None or line not in releases.asked:
        return  # a repeated answer
    times = releases.refused.get(line, 0) + 1
    asked = tuple(other for other in releases.asked if other != line)
    work.put(RELEASES, order_id, replace(releases, refused={**releases.refused, line: times}, asked=asked))
    policy = Policy.of(shop_settings(work.settings))
    if times <= policy.retries:
        work.schedule(TIMER, order_id, work.now_ms + backoff_ms(policy, times), str(line).encode())


@service.on_timer(TIMER)
def try_again(timer: Timer, work: UnitOfWork) -> None:
    """Release a refused line again."""
    order, releases = choreographed(timer.key, work), work.get(RELEASES, timer.key)
    if order is not None and releases is not None:
        retries = Policy.of(shop_settings(work.settings)).retries
        lines = [line for line, times in releases.refused.items() if times <= retries and line not in releases.asked]
        _release(order, releases, lines, work)


@service.reaction(ResumeSaga)
def resume(command: Envelope[ResumeSaga], work: UnitOfWork) -> None:
    """Release what was refused, with all tries anew."""
    order, releases = choreographed(command.payload.order_id, work), work.get(RELEASES, command.payload.order_id)
    if order is not None and releases is not None:
        anew = replace(releases, refused=dict.fromkeys(releases.refused, 0))
        _release(order, anew, anew.refused, work)


def _release(order: Order, releases: Releases, lines: Iterable[int], work: UnitOfWork) -> None:
    assert order.cancelled_at is not None, "only a cancelled order gives its stock back"
    work.put(RELEASES, order.order_id, replace(releases, asked=tuple(sorted({*releases.asked, *lines}))))
    for line in lines:
        command = ReleaseStock(order.items[line - 1].product_id, order.order_id, line)
        step = f"release:{line}:{work.now_ms}"
        ask(work, INVENTORY_COMMANDS, command, releases.origin, order.cancelled_at, step)


def _follows(event: Envelope[OrderPlaced] | Envelope[OrderCancelled]) -> Metadata:
    return Metadata(event.metadata.correlation_id, event.event_id, event.metadata.user_id)
