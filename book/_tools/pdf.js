// Arrange the book on its one page for print: a title page, the contents, the chapters. Returns what is wrong with it.
async ({title, author, parts, cover, style}) => {
    const make = (tag, properties = {}, ...children) => {
        const element = Object.assign(document.createElement(tag), properties);
        element.append(...children);
        return element;
    };
    await MathJax.startup.promise;
    const article = document.querySelector("article");
    for (const link of article.querySelectorAll("a.headerlink")) link.remove();

    const front = make("header", {id: "front"}, cover
        ? make("img", {src: "_static/cover.png", alt: `${title}, ${author}`})
        : make("div", {}, make("p", {className: "title", textContent: title}), make("p", {textContent: author})));
    const root = article.querySelector("h1");
    root.textContent = "About this book";

    const contents = make("nav", {id: "contents"}, make("h1", {textContent: "Contents"}));
    const chapters = [root.parentElement, ...document.querySelectorAll("span[id^='document-'] + section")];
    for (const chapter of chapters) {
        chapter.classList.add("chapter");
        const part = parts[chapter.previousElementSibling?.id?.replace(/^document-/, "")];
        if (part) {
            chapter.before(make("h1", {className: "part", textContent: part}));
            contents.append(make("p", {className: "part", textContent: part}));
        }
        const entry = (section, level) => {
            const title = section.querySelector(":scope > h1, :scope > h2, :scope > h3");
            const text = make("span", {innerHTML: title.innerHTML});
            contents.append(make("a", {className: level, href: `#${section.id}`}, text));
        };
        entry(chapter, "to-chapter");
        for (const section of chapter.querySelectorAll(":scope > section:not(.chapter)")) entry(section, "to-section");
    }
    for (const sheet of document.querySelectorAll("link[rel=stylesheet]"))
        if (!/pygments/.test(sheet.href)) sheet.remove();
    document.head.append(make("style", {textContent: style}));
    document.documentElement.dataset.theme = "light";
    document.body.replaceChildren(front, contents, article);
    MathJax.startup.document.rerender();  // at the size of the text as it is printed
    await document.fonts.ready;

    const images = [...document.images];
    await Promise.all(images.map(image => image.decode().catch(() => {})));
    const targets = [...document.querySelectorAll("a[href^='#']")].map(link => decodeURIComponent(link.hash.slice(1)));
    return [
        ...images.filter(image => !image.naturalWidth).map(image => `no image ${image.getAttribute("src")}`),
        ...[...document.querySelectorAll(".math:not(:has(mjx-container))")].map(raw => `not typeset: ${raw.textContent}`),
        ...[...document.querySelectorAll("[data-mjx-error]")].map(wrong => `${wrong.textContent}: ${wrong.dataset.mjxError}`),
        ...targets.filter(target => !document.getElementById(target)).map(target => `no anchor ${target}`),
    ];
}
