// Each form of controls selects the visible parts of its section. Without scripts all parts are visible.
"use strict";

const MILLISECONDS_A_MAP = 1200;

const chosenBy = (input) => (input.type === "range" ? input.dataset.values.split(" ")[input.value] : input.value);

const markStop = (slider) => {
  const stops = slider.parentElement.querySelectorAll(".stops span");
  stops.forEach((stop, index) => stop.classList.toggle("now", index === Number(slider.value)));
  slider.setAttribute("aria-valuetext", `${chosenBy(slider)} hours ahead`);
};

const choose = (form) => {
  const section = form.closest("section");
  for (const input of form.querySelectorAll("input")) {
    if (input.type === "checkbox") section.classList.toggle(`no-${input.name}`, !input.checked);
    if (input.type === "range") markStop(input);
    if (input.type !== "range" && !(input.type === "radio" && input.checked)) continue;
    for (const element of section.querySelectorAll(`[data-${input.name}]`)) {
      element.hidden = element.dataset[input.name] !== chosenBy(input);
    }
  }
};

// The animation starts on request; moving the slider stops it.
const animate = (form, button, slider) => {
  let timer = 0;
  const advance = () => {
    slider.value = Number(slider.value) === Number(slider.max) ? 0 : Number(slider.value) + 1;
    choose(form);
  };
  const set = (running) => {
    clearInterval(timer);
    timer = running ? setInterval(advance, MILLISECONDS_A_MAP) : 0;
    button.textContent = running ? "Pause" : "Play";
  };
  button.addEventListener("click", () => set(!timer));
  slider.addEventListener("input", () => set(false));
  document.addEventListener("visibilitychange", () => document.hidden && set(false));
};

for (const form of document.querySelectorAll(".controls")) {
  form.hidden = false;
  form.addEventListener("input", () => choose(form));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll(".play")) {
    animate(form, button, button.parentElement.querySelector("input"));
  }
  choose(form);
}
