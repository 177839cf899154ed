// A desk for labelling: draws what the kernel sends and sends back keys and clicks. Texts of others are only ever set as text.
function make(parent, tag, cls, attrs = {}) {
  const e = document.createElement(tag);
  e.className = cls;
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  return parent.appendChild(e);
}

function render({ model, el }) {
  // JupyterLab must leave the keys alone: outside a text field, 1 makes a heading of the cell
  const box = make(el, 'section', 'gp-label', { tabindex: '0', 'data-lm-suppress-shortcuts': 'true' });
  const head = make(box, 'div', 'gp-label-head');
  const ask = make(head, 'strong', 'gp-label-ask');
  const count = make(head, 'span', 'gp-label-count');
  const bar = make(box, 'progress', 'gp-label-bar', { 'aria-label': 'Progress' });
  const texts = make(box, 'dl', 'gp-label-texts');
  const row = make(box, 'div', 'gp-label-row');
  const keys = make(row, 'span', 'gp-label-keys');
  const undo = make(row, 'button', 'gp-label-undo', { type: 'button', 'aria-keyshortcuts': 'u' });
  const said = make(box, 'p', 'gp-label-said', { role: 'status' });
  let now = {}, waiting = null;

  function send(message) {
    if (waiting) return; // one word at a time: the answer shows what was saved
    said.textContent = 'Saving …';
    waiting = setTimeout(() => { waiting = null; said.textContent = 'No answer yet: is the kernel running? Run the cell again; what was saved is kept.'; }, 8000);
    model.send({ ...message, item: now.item });
  }
  function button(label, i) {
    const b = make(keys, 'button', 'gp-label-give', { type: 'button', 'aria-keyshortcuts': `${i + 1}` });
    make(b, 'kbd', '').textContent = `${i + 1}`;
    b.append(` ${label}`);
    b.onclick = () => send({ do: 'label', label });
  }
  function draw(state) {
    clearTimeout(waiting); waiting = null;
    if (String(state.labels) !== String(now.labels)) { keys.replaceChildren(); state.labels.forEach(button); }
    now = state;
    box.setAttribute('aria-label', state.title);
    ask.textContent = state.question;
    count.textContent = state.count;
    bar.max = state.total; bar.value = state.done;
    texts.replaceChildren();
    for (const [name, text] of state.texts) { make(texts, 'dt', '').textContent = name; make(texts, 'dd', '').textContent = text; }
    said.textContent = state.said;
    const at = document.activeElement;
    for (const b of keys.children) b.disabled = state.item === null;
    undo.disabled = state.done === 0;
    if (box.contains(at) && at.disabled) box.focus(); // a button that cannot be pressed would take the keys with it
  }
  make(undo, 'kbd', '').textContent = 'u';
  undo.append(' undo');
  undo.onclick = () => send({ do: 'undo' });
  box.onkeydown = e => {
    if (e.ctrlKey || e.altKey || e.metaKey || e.repeat) return;
    const label = /^[1-9]$/.test(e.key) && (now.labels || [])[e.key - 1];
    if (label && now.item !== null) send({ do: 'label', label });
    else if (e.key === 'u' && now.done > 0) send({ do: 'undo' });
    else return;
    e.preventDefault();
  };
  model.on('msg:custom', draw);
  model.send({ do: 'show' });
  return () => model.off('msg:custom', draw);
}

export default { render };
