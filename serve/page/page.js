"use strict";

const DOCUMENT = "/v0/pipes/openapi.json";

// The document lists the endpoints that the token may read: it is read again when a token is entered or removed.
const readAgain = (original, system) => (payload) => {
  const result = original(payload);
  system.specActions.download(DOCUMENT);
  return result;
};

const ui = SwaggerUIBundle({
  url: DOCUMENT,
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  validatorUrl: null, // it would send the document's address to a service elsewhere
  plugins: [{ statePlugins: { auth: { wrapActions: { authorize: readAgain, logout: readAgain } } } }],
  requestInterceptor: (request) => {
    if (request.loadSpec) {
      const [entered] = Object.values(ui.authSelectors.authorized().toJS());
      if (entered) request.headers.Authorization = `Bearer ${entered.value}`;
    }
    return request;
  },
});
