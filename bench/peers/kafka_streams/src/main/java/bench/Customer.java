package bench;

/** What the table keeps for a customer. */
record Customer(long count, double total) {

    Customer plus(double amount) {
        return new Customer(count + 1, total + amount);
    }
}
