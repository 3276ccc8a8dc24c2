// The theme takes the focus from a button that is pressed, and the keyboard its place on the page: it comes back here.
document.addEventListener("click", (event) => {
  event.target.closest(".theme-switch-button, .primary-toggle, .secondary-toggle")?.focus();
});

// What docutils marks as a list holds entries of another role.
for (const entry of document.querySelectorAll(".citation-list > .citation")) {
  entry.setAttribute("role", "listitem");
}
