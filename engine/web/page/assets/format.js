// Figures, amounts and times as people read them, in the browser's language.

const whole = new Intl.NumberFormat();
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const rate = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
const percent = new Intl.NumberFormat(undefined, { style: "percent", maximumFractionDigits: 1 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeZone: "UTC" });

export const number = (value) => whole.format(value);
export const compact = (value) => short.format(value);
export const perSecond = (value) => `${rate.format(value)}/s`;
export const share = (value) => percent.format(value);
export const seconds = (value) => `${rate.format(value)} s`;
export const dayOf = (text) => day.format(new Date(`${text}T00:00:00Z`));

/** An amount as it was sent: a decimal string, so that no digit is lost. */
export function money(total, options = {}) {
  if (!total) return "–";
  return new Intl.NumberFormat(undefined, { style: "currency", currency: total.currency, ...options }).format(total.amount);
}

/** A time of the API as an element; the exact one is its title. */
export function time(text) {
  if (!text) return null;
  const element = document.createElement("time");
  element.dateTime = element.title = text;
  element.textContent = moment.format(new Date(text));
  return element;
}

/** An amount as a number, for charts only. */
export const approximately = (amount) => Number.parseFloat(amount);
