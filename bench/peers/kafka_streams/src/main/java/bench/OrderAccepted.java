package bench;

/** The derived event. */
record OrderAccepted(String eventType, String orderId, String causationId) {

    static OrderAccepted of(Envelope cause) {
        return new OrderAccepted("order.accepted", cause.payload().orderId(), cause.eventId());
    }
}
